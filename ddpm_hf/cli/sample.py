"""Draw images from a checkpoint, each from its own seed, on all processes.

    ddpm-hf-sample --model runs/digits --num_images 1000 --num_inference_steps 100 --output samples
    accelerate launch --multi_gpu -m ddpm_hf.cli.sample --model OWNER/NAME --num_images 50000 --output samples

The image of a seed depends on nothing but that seed and the model. Giving the same command again
draws the images that are missing.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings
from ddpm_hf.sampling.request import MOST_IMAGES, Request
from ddpm_hf.sampling.samplers import SamplerName
from ddpm_hf.settings import ColourMap, check

PICTURES: Final = {"denoising": range(1, 17), "interpolation": range(2, 17), "grid": range(1, 1025)}
"""Each picture of ``--show`` with the numbers of images that it may have."""


@dataclass(frozen=True)
class SampleConfig:
    """Settings of ddpm-hf-sample.

    Args:
        model: Folder of a pipeline, or its Hub id.
        output: Folder for the images and their manifest.json; the same command again draws the images missing there.
        num_images: Number of images; their seeds are seed to seed + num_images - 1.
        seed: Seed of the first image; the others have the seeds after it.
        scheduler: Sampler; ddim, ddpm and adams are this package's, others diffusers'. null: that of the checkpoint.
        num_inference_steps: Steps of the sampler.
        timestep_spacing: How the sampler's timesteps are spread over the training timesteps: leading, linspace,
            trailing or, for ddim and ddpm, quadratic or angle. null: that of the checkpoint.
        eta: Noise of the samplers ddim and adams: 0 is DDIM, 1 is DDPM on the same steps.
        class_labels: Classes for a class-conditional model, used in turn: 3, or 1,4,7, or 0-9.
        guidance_scale: Scale of classifier-free guidance; 1 is no guidance.
        guidance_interval: Noise levels sigma = sqrt(1 / alpha_bar - 1) between which there is guidance, such as
            [0.2,2]: images stay more diverse, and other steps take half the time. null: all.
        batch_size: Images computed at once by each process.
        show: Draw a picture of a few images in place of the images themselves: denoising (a strip and a GIF of x_t and
            the predicted x_0), interpolation (from the noise of each seed to that of the next, without added noise) or
            grid.
        shown_channels: Channels that a picture of --show has, from 0: one as grey, two as magenta and green, three as
            red, green and blue. null: all of up to three, else the first three.
        colour_map: Colours in which such a picture shows a single channel; null is grey.
        format: Files to write: png or tiff (one for each image), npy (one array), npz (one file in ADM's layout) or
            parquet (a data set for load_dataset). Values have the type and units of the training images; png and
            parquet hold 8 and 16 bits, grey or RGB, and the others all types and channels.
        revision: Branch, tag or commit of a model on the Hub.
        push_to_hub: OWNER/NAME of a data set on the Hub to push the images to; needs --format parquet.
        hub_private_repo: Make the data set private when it is created.
        hub_license: License of the images, for the card of the data set.
        dtype: Floating-point type of the network.
        compile: Compile the network with torch.compile, in channels_last: true, false, or auto, which is true where all
            images together take so long that it pays. An image's last bits can depend on it; a folder is finished as
            it was begun.
        threads: CPU threads of each process; null divides the usable cores among the processes of this machine.
        quiet: Do not tell how far it is: no bar in a terminal, and no lines where there is none.
    """

    model: str
    output: Path
    num_images: int = 50_000
    seed: int = 0
    scheduler: SamplerName | None = None
    num_inference_steps: int = 100
    timestep_spacing: str | None = None
    eta: float = 0.0
    class_labels: str | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    batch_size: int = 128
    show: str | None = None
    shown_channels: list[int] | None = None
    colour_map: ColourMap | None = None
    format: Literal["png", "tiff", "npy", "npz", "parquet"] = "png"
    revision: str | None = None
    push_to_hub: str | None = None
    hub_private_repo: bool = False
    hub_license: str = "apache-2.0"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compile: bool | Literal["auto"] = "auto"
    threads: int | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        self.request()  # which refuses what is wrong in it
        expected = f"at least 1, and at most {MOST_IMAGES:,}"
        check(1 <= self.batch_size <= MOST_IMAGES, "batch_size", self.batch_size, expected)
        check(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        if self.show is not None:
            self._check_picture(self.show)
        for name in ("shown_channels", "colour_map"):
            value = getattr(self, name)
            check(value is None or self.show is not None, name, value, "null without --show, which draws pictures")
        if self.push_to_hub is not None and self.format != "parquet":
            raise ValueError(f"push_to_hub takes a data set, and format is {self.format}; give --format parquet")

    def request(self) -> Request:
        """What is drawn, and how.

        Raises:
            ValueError: a value is wrong.
        """
        return Request(**{field.name: getattr(self, field.name) for field in fields(Request)})

    def _check_picture(self, kind: str) -> None:
        """See that a picture has a size that can be looked at."""
        if kind not in PICTURES:
            raise ValueError(f"show is {kind!r} and must be one of {', '.join(PICTURES)}")
        sizes = PICTURES[kind]
        if self.num_images not in sizes:
            raise ValueError(
                f"num_images is {self.num_images} and must be from {sizes[0]} to {sizes[-1]} with show {kind}; "
                "give --num_images"
            )


@ending_in_one_sentence()
def main() -> None:
    """The console command."""
    config = parse_settings(SampleConfig, sys.argv[1:], "Draw images from a model, each from its own seed.")
    from ddpm_hf.cli import drawing  # only now, as it loads torch

    drawing.run(config)


if __name__ == "__main__":
    main()
