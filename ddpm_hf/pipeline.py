"""DDPMCustomPipeline: a network and a scheduler that make images, in a folder that plain diffusers reads too."""

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ddpm_hf.files import read_json
from ddpm_hf.hub.cards import Subject, model_card
from ddpm_hf.hub.downloads import beyond_index, fetched, files_of
from ddpm_hf.hub.public_files import public_files
from ddpm_hf.hub.repository import Repository, is_of_the_hub, told_in_one_sentence
from ddpm_hf.images import check_picture, to_pil, to_uint8, to_unit_range
from ddpm_hf.model_folder import OnlyVariant, check_has_weights, check_local_folder, only_variant
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.pipeline_index import OURS, check_index, make_ours, saved_index
from ddpm_hf.pixels import PixelFormat
from ddpm_hf.randomness import generators_of
from ddpm_hf.recipes import PIPELINES, names_of, pipeline_class
from ddpm_hf.sampling.arguments import (
    check_generator,
    check_memory,
    check_output_type,
    label_tensor,
    number_of_images,
)
from ddpm_hf.sampling.denoising import DEFAULT, OnStep, SamplingOptions, denoise, image_shape
from ddpm_hf.sampling.samplers import check_scheduler, check_start
from ddpm_hf.schedulers.ddim import DDIMScheduler
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.settings import as_int

logger = logging.getLogger(__name__)


class DDPMCustomPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """Unconditional or class-conditional image generation with DDPM, DDIM or any other diffusers scheduler.

    `save_pretrained` writes a folder that names diffusers' own classes, so plain diffusers loads it without this
    package; `from_pretrained` loads that folder, and any diffusers DDPM or DDIM one, with the classes of this package.

    Args:
        unet: ours, or diffusers' (made ours, sharing its weights).
        scheduler: ours, or diffusers' DDPM or DDIM (made ours), or any other of diffusers' (taken as it is).
        pixels: what the numbers of its images mean, as `PixelFormat.to_dict` writes it; None for pictures of 8 bits.

    Examples:
        >>> pipe = DDPMCustomPipeline.from_pretrained("runs/digits")  # or "google/ddpm-cifar10-32"
        >>> pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        >>> images = pipe(seeds=range(16), num_inference_steps=100, timestep_spacing="quadratic").images
    """

    model_cpu_offload_seq = "unet"

    # The loader looks at these annotations: `from_pipe` keeps a component only if its type is among them.
    def __init__(
        self,
        unet: UNet2DModel | diffusers.UNet2DModel,
        scheduler: DDPMScheduler | DDIMScheduler | diffusers.DDPMScheduler | diffusers.DDIMScheduler,
        pixels: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.format = PixelFormat.from_dict(pixels)
        # Under a private name: diffusers takes any other for a component, which pipelines made of this one lack.
        self.register_to_config(_pixels=self.format.to_dict())
        self.register_modules(unet=_adopt_unet(unet), scheduler=_adopt_scheduler(scheduler))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seeds: Sequence[int] | Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        timestep_spacing: str | None = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        class_labels: int | Sequence[int] | Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make images.

        Args:
            batch_size: how many; as many as there are seeds or else class labels when None, or one.
            generator: one, or one per image; with it diffusers' DDPMPipeline and DDIMPipeline give the same images.
            seeds: one per image (a list, a range, an array or a tensor), in place of a generator. An image depends on
                its own seed alone: it is the same in any batch and, but for rounding, on any device.
            num_inference_steps: S, at most T. When None, 50, or all T for a DDPMScheduler. Which scheduler draws best
                in how many is measured in docs/benchmarks.md (five_steps): AdamsScheduler, in 5.
            timesteps: the times to visit, descending, in place of S.
            timestep_spacing: how S times are chosen, in place of the scheduler's own; one of
                `timestep_spacing.TIMESTEP_SPACINGS`.
            eta: 0 (DDIM) .. 1 (DDPM's noise), for a DDIMScheduler or AdamsScheduler.
            use_clipped_model_output: see `DDIMScheduler.step`; None is True with guidance, else False.
            class_labels: one for all, or one per image.
            guidance_scale: classifier-free guidance; 1 is none. The network's last class stands for "no class".
            guidance_interval: the noise levels between which there is guidance, see `guided_steps`; None for all.
            output_type: `pil` images; `np` or `numpy` float32 (B, H, W, C) in [0, 1]; `pt` float (B, C, H, W) in
                [0, 1]; `uint8` (B, C, H, W); `values` (B, C, H, W), of the type and in the units of the images that
                the network was trained on (`format`).
            return_dict: False for the plain tuple (images,).
            callback_on_step_end: called as f(pipe, i, t, {"sample": x_s, "pred_original_sample": x_0}) after each step;
                a "sample" in the dict that it returns replaces x_t for the next step.

        Raises:
            ValueError: for arguments that do not fit together or the model, in one sentence.
        """
        check_output_type(output_type)
        check_generator(generator)
        if generator is not None and seeds is not None:
            raise ValueError("Give either generator or seeds, and not both.")
        options = SamplingOptions(eta, guidance_scale, use_clipped_model_output, guidance_interval=guidance_interval)
        given = {"batch_size": batch_size, "seeds": seeds, "generators": generator, "class_labels": class_labels}
        batch_size, device = number_of_images(given), self._execution_device
        shape = (batch_size, *image_shape(self.unet))
        if output_type == "pil":
            check_picture(shape[1], self.format.alpha)
        check_memory(shape, device)
        if seeds is not None:
            generator = generators_of(seeds)
        labels = label_tensor(class_labels, self.unet, batch_size, device)
        self._set_timesteps(num_inference_steps, timesteps, timestep_spacing)
        check_start(self.scheduler)
        noise = randn_tensor(shape, generator, device=device, dtype=self.unet.dtype)

        def on_step(i: int, t: Tensor, x_s: Tensor, x_0: Tensor | None) -> Tensor | None:
            assert callback_on_step_end is not None
            changed = callback_on_step_end(self, i, t, {"sample": x_s, "pred_original_sample": x_0})
            return changed.get("sample") if changed else None

        x_0 = self.denoise(
            noise,
            options,
            generator=generator,
            class_labels=labels,
            on_step=on_step if callback_on_step_end else None,
        )
        self.maybe_free_model_hooks()
        images = _as_output(x_0, output_type, self.format)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def denoise(
        self,
        x_t: Tensor,
        options: SamplingOptions = DEFAULT,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """`sampling.denoising.denoise` by this pipeline's network and scheduler, with a progress bar."""
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:

            def counted(i: int, t: Tensor, x_s: Tensor, x_0: Tensor | None) -> Tensor | None:
                bar.update()
                return on_step(i, t, x_s, x_0) if on_step else None

            return denoise(
                self.unet,
                self.scheduler,
                x_t,
                options,
                generator=generator,
                class_labels=class_labels,
                on_step=counted,
            )

    def _set_timesteps(
        self, num_inference_steps: int | None, timesteps: Sequence[int] | None, timestep_spacing: str | None
    ) -> None:
        check_scheduler(self.scheduler)
        if timesteps is None and num_inference_steps is None:
            total = self.scheduler.config.num_train_timesteps
            num_inference_steps = total if isinstance(self.scheduler, DDPMScheduler) else min(50, total)
        asked = {
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "timestep_spacing": timestep_spacing,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        if num_inference_steps is not None:  # some of diffusers' schedulers take any number, and fail later or never
            steps, total = as_int("num_inference_steps", num_inference_steps), self.scheduler.config.num_train_timesteps
            if not 1 <= steps <= total:
                raise ValueError(
                    f"num_inference_steps={steps} cannot be taken of {total} training steps; use 1 .. {total}."
                )
        try:
            self.scheduler.set_timesteps(**asked)
        except TypeError:
            raise ValueError(
                f"{type(self.scheduler).__name__}.set_timesteps does not take {', '.join(asked)} together; use "
                "DDIMScheduler, or give num_inference_steps only."
            ) from None

    def to_json_string(self) -> str:
        """The folder's index (`save_pretrained` and `push_to_hub` write it): diffusers' names, and no local path."""
        index = saved_index(json.loads(super().to_json_string()), self.components)
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        variant: str | None = None,
        license: str = "apache-2.0",
    ) -> str:
        """Push the pipeline and a card, which keeps what a user has edited in it.

        Args:
            repo_id: OWNER/NAME; created if it does not exist.
            commit_message: title of the commit.
            private: make the repository private when it is created.
            token: token to use in place of HF_TOKEN and of the one that `hf auth login` has stored.
            variant: part of the weights' file name, as for `save_pretrained`.
            license: license of the model, for its card.

        Returns:
            The URL of the commit.

        Raises:
            ValueError: the id has another form.
            PushError: it did not work, in one sentence.
        """
        repository = Repository(repo_id, private=bool(private), token=token)
        repository.prepare()
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant)
            files = public_files(Path(folder), "*.json", "unet/*", "scheduler/*")
            subject = Subject(repo_id, license, dict(self.unet.config))
            message = commit_message or f"Upload {type(self).__name__}"
            return repository.commit(files, message, lambda present: model_card(subject, present))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """As diffusers', with our classes, from a folder or a Hub id.

        A `custom_pipeline` may be the name of one that this package ships (`ddpm_hf.pipelines`), such as "repaint".

        Raises:
            ValueError: if it holds another kind of pipeline, or a file in it is damaged or of another form.
            FileNotFoundError: if a local folder is missing, or is no pipeline's.
            OSError: if it cannot be downloaded from the Hub, in one sentence.
        """
        name = str(pretrained_model_name_or_path)
        if kwargs.get("custom_pipeline") in names_of(PIPELINES):
            return pipeline_class(kwargs.pop("custom_pipeline")).from_pretrained(name, **kwargs)
        check_local_folder(Path(name), needs_weights="unet" not in kwargs)
        load, variant = super().from_pretrained, None
        if "unet" not in kwargs and kwargs.get("variant") is None:
            variant = only_variant(Path(name))
        with told_in_one_sentence(name), _named_in_one_sentence(name):
            if variant is None:
                try:
                    return load(name, **kwargs)
                except OnlyVariant as found:  # of a model on the Hub
                    variant = found.variant
            logger.warning("%s has weights of the variant %r only; they are taken.", name, variant)
            return load(name, **{**kwargs, "variant": variant})

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """As diffusers', but a file that is not what the Hub says, also in the cache, is fetched anew.

        Raises:
            OnlyVariant: the only weights are those of a variant, which was not asked for.
            ValueError: it holds another kind of pipeline, or its weights are pickled.
            OSError: it cannot be downloaded, in one sentence.
        """
        fetch, name = super().download, pretrained_model_name
        with told_in_one_sentence(name):
            given = {"unet", "scheduler"} <= kwargs.keys()  # then the index is all that is wanted
            whole = Path if given else beyond_index
            folder = fetched(lambda: whole(fetch(name, **kwargs)), name)
            plain = (
                "unet" not in kwargs and kwargs.get("variant") is None and kwargs.get("use_safetensors") is not False
            )
            if plain and '"UNet2DModel"' in (folder / "model_index.json").read_text():
                check_index(read_json(folder / "model_index.json"), name)
                check_has_weights(name, folder, lambda: files_of(name, folder.name, kwargs.get("token")))
            return str(folder)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The folder's index with our classes in the place of diffusers' (`from_pretrained` builds what it names).

        Raises:
            ValueError: if the index is that of another kind of pipeline.
        """
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        path = str(pretrained_model_name_or_path)
        check_index(index, _name_of(path))
        make_ours(index, Path(path))
        return config


def _adopt_unet(unet: Any) -> Any:
    """Our class with the same weights (shared, not copied) in the place of diffusers' UNet2DModel."""
    if isinstance(unet, UNet2DModel):
        origin = unet.config.get("_name_or_path", "")  # diffusers would save this machine's path in config.json
        if Path(origin).is_absolute():
            unet.register_to_config(_name_or_path=Path(origin).name)
        return unet
    if not isinstance(unet, diffusers.UNet2DModel):
        return unet
    with torch.device("meta"):
        ours = UNet2DModel.from_config(unet.config)
    ours.load_state_dict(unet.state_dict(), assign=True)
    return ours.train(unet.training)


def _adopt_scheduler(scheduler: Any) -> Any:
    if isinstance(scheduler, DDPMScheduler | DDIMScheduler):
        return scheduler
    is_theirs = type(scheduler) in (diffusers.DDPMScheduler, diffusers.DDIMScheduler)
    return OURS[type(scheduler).__name__].from_config(scheduler.config) if is_theirs else scheduler


def _as_output(x_0: Tensor, output_type: str, format: PixelFormat) -> Any:
    if output_type == "values":
        return format.from_model(x_0)
    if output_type == "pt":
        return to_unit_range(x_0)
    if output_type in ("np", "numpy"):
        return to_unit_range(x_0.float()).cpu().permute(0, 2, 3, 1).numpy()
    return to_pil(to_uint8(x_0), format.alpha) if output_type == "pil" else to_uint8(x_0)


@contextmanager
def _named_in_one_sentence(source: str) -> Iterator[None]:
    """Have what diffusers raises while it reads a damaged folder come out as one sentence that names the folder."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if is_of_the_hub(error) or Path(raised_in).is_relative_to(Path(__file__).parent):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise (type(error) if isinstance(error, OSError) else ValueError)(
            f"{source} cannot be loaded as a pipeline: {reason[:400]}"
        ) from error


def _name_of(folder: str) -> str:
    """OWNER/NAME of a folder in the cache of the Hub's files; others as they are."""
    found = re.search(r"models--([^/\\]+)[/\\]snapshots", folder)
    return found[1].replace("--", "/") if found else folder
