"""What somebody asks to be drawn: the settings that ddpm-hf-sample and the page share. Nothing here loads torch."""

from dataclasses import dataclass
from math import isfinite
from typing import Final

from ddpm_hf.diffusion.choices import TIMESTEP_SPACINGS
from ddpm_hf.sampling.samplers import SamplerName, check_sampler
from ddpm_hf.settings import check, check_seed

MOST_IMAGES: Final = 1_000_000_000
LAST_CLASS: Final = 10_000_000


@dataclass(frozen=True)
class Request:
    """Images, and how they are drawn. The fields are explained by `ddpm_hf.cli.sample.SampleConfig`.

    Args:
        num_images: Number of images.
        seed: Seed of the first one; the others have the seeds after it.
        scheduler: Name of a sampler; None for that of the model.
        num_inference_steps: Steps of the sampler.
        timestep_spacing: How its timesteps are spread; None for that of the model.
        eta: From 0 (DDIM) to 1 (DDPM), for the samplers ddim and adams.
        class_labels: Classes, used in turn, as `classes_of` reads them.
        guidance_scale: Scale of classifier-free guidance.
        guidance_interval: Noise levels between which there is guidance; None for all.

    Raises:
        ValueError: a value is out of its range, or does not go with the others, in one sentence that names it.
    """

    num_images: int = 1
    seed: int = 0
    scheduler: SamplerName | None = None
    num_inference_steps: int = 100
    timestep_spacing: str | None = None
    eta: float = 0.0
    class_labels: str | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("num_images", "num_inference_steps"):
            value = getattr(self, name)
            check(1 <= value <= MOST_IMAGES, name, value, f"at least 1, and at most {MOST_IMAGES:,}")
        check_seed("seed", self.seed, self.num_images)
        check(0 <= self.eta <= 1, "eta", self.eta, "from 0 to 1")
        check(isfinite(self.guidance_scale), "guidance_scale", self.guidance_scale, "a finite number")
        check_interval(self.guidance_interval, self.guidance_scale)
        is_known = self.timestep_spacing is None or self.timestep_spacing in TIMESTEP_SPACINGS
        check(is_known, "timestep_spacing", self.timestep_spacing, f"one of {', '.join(TIMESTEP_SPACINGS)}")
        if self.class_labels is not None:
            classes_of(self.class_labels)
        if self.scheduler is not None:
            check_sampler(self.scheduler, self.timestep_spacing, self.eta, self.num_inference_steps)

    @property
    def seeds(self) -> range:
        """The seed of each image."""
        return range(self.seed, self.seed + self.num_images)


def check_interval(interval: tuple[float, float] | None, scale: float, prefix: str = "") -> None:
    """See that noise levels of guidance are an interval, and that there is guidance.

    Args:
        interval: The two noise levels, or None.
        scale: The scale of the guidance; 1 is none.
        prefix: What stands before the names of the settings.

    Raises:
        ValueError: in one sentence.
    """
    if interval is None:
        return
    name = f"{prefix}guidance_interval"
    is_one = len(interval) == 2 and 0 <= interval[0] < interval[1]
    check(is_one, name, list(interval), "two noise levels, the lower one first, such as [0.2,2]")
    check(scale != 1, name, list(interval), f"null where {prefix}guidance_scale is 1, which is no guidance")


def classes_of(text: str) -> list[range]:
    """Classes as they are typed, such as 3, or 1,4,7, or 0-9: a range for each part.

    Raises:
        ValueError: it has another form, or names more classes than any model has.
    """
    spans = [part.strip().partition("-") for part in text.split(",")]
    if not all(first.isdecimal() and (last.isdecimal() or not dash) for first, dash, last in spans):
        raise ValueError(f"class_labels is {text!r} and takes a form like 3, 1,4,7 or 0-9")
    ends = [(_class_of(first), _class_of(last or first)) for first, _, last in spans]
    for first, last in ends:
        if not first <= last <= LAST_CLASS:
            raise ValueError(f"class_labels is {text[:80]!r}, and a range goes up, to {LAST_CLASS:,} at most")
    return [range(first, last + 1) for first, last in ends]


def _class_of(digits: str) -> int:
    return int(digits) if len(digits) < 20 else LAST_CLASS + 1
