"""The samplers by name: which class each is, what it can draw from, and on which timesteps. Nothing here loads torch.

To add one, write a scheduler with diffusers' interface in a file of its own, and give it a row of `SAMPLERS`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final, Literal

from ddpm_hf.diffusion.choices import TIMESTEP_SPACINGS

logger = logging.getLogger(__name__)

_THEIRS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class Sampler:
    """A row of `SAMPLERS`.

    Args:
        scheduler: the class, as "module:name".
        description: what it is, for help texts.
        options: entries of its config that make it the sampler of this name.
        is_stochastic: whether it adds noise on the way, so that an image does not follow from x_T alone.
        has_eta: whether a step takes eta, from 0 (no noise) to 1 (the noise of DDPM).
        prediction_types: those that it is right for; None for all that a `Denoiser` reads.
        timestep_spacings: those that it has.
        fewest_steps: its smallest num_inference_steps.
        largest_first_step: the factor by which the noise level sqrt(1 / alpha_bar - 1) may fall in the first step if
            the images are to be good; None if that does not matter.
    """

    scheduler: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_stochastic: bool = False
    has_eta: bool = False
    prediction_types: tuple[str, ...] | None = ("epsilon", "sample", "v_prediction")
    timestep_spacings: tuple[str, ...] = _THEIRS
    fewest_steps: int = 1
    largest_first_step: float | None = None


SAMPLERS: Final[dict[str, Sampler]] = {
    "ddim": Sampler(
        "ddpm_hf.schedulers.ddim:DDIMScheduler",
        "Song et al. 2021; no noise, or that of eta",
        has_eta=True,
        prediction_types=None,
        timestep_spacings=TIMESTEP_SPACINGS,
    ),
    "ddpm": Sampler(
        "ddpm_hf.schedulers.ddpm:DDPMScheduler",
        "Ho et al. 2020; noise at every step",
        is_stochastic=True,
        prediction_types=None,
        timestep_spacings=TIMESTEP_SPACINGS,
    ),
    "adams": Sampler(
        "ddpm_hf.schedulers.adams:AdamsScheduler",
        "DDIM of second order; the best of few steps",
        has_eta=True,
        prediction_types=None,
        timestep_spacings=TIMESTEP_SPACINGS,
    ),
    "unipc": Sampler("diffusers:UniPCMultistepScheduler", "Zhao et al. 2023, a predictor and a corrector"),
    "dpmsolver++": Sampler(
        "diffusers:DPMSolverMultistepScheduler",
        "Lu et al. 2022, of second order",
        {"algorithm_type": "dpmsolver++"},
    ),
    "sde-dpmsolver++": Sampler(
        "diffusers:DPMSolverMultistepScheduler",
        "the same with noise at every step",
        {"algorithm_type": "sde-dpmsolver++"},
        is_stochastic=True,
    ),
    "sa_solver": Sampler(
        "diffusers:SASolverScheduler", "Xue et al. 2023; Adams' method with noise at most steps", is_stochastic=True
    ),
    "deis": Sampler("diffusers:DEISMultistepScheduler", "Zhang & Chen 2023, of second order"),
    "lms": Sampler("diffusers:LMSDiscreteScheduler", "linear multi-step method of fourth order"),
    "pndm": Sampler(
        "diffusers:PNDMScheduler",
        "Liu et al. 2022; its first three steps take four evaluations each",
        prediction_types=("epsilon", "v_prediction"),
        fewest_steps=4,
    ),
    # Its slope at the second noise level is that of the image drawn there, and the step from the first one is as many
    # times longer as that level is higher.
    "heun": Sampler(
        "diffusers:HeunDiscreteScheduler", "Karras et al. 2022; two evaluations a step", largest_first_step=20.0
    ),
    "kdpm2": Sampler(
        "diffusers:KDPM2DiscreteScheduler",
        "Karras et al. 2022, midpoints; two evaluations a step",
        prediction_types=("epsilon", "v_prediction"),
    ),
    "euler": Sampler("diffusers:EulerDiscreteScheduler", "DDIM without clipping of the predicted x_0"),
    "euler_ancestral": Sampler(
        "diffusers:EulerAncestralDiscreteScheduler",
        "DDPM's noise without clipping",
        is_stochastic=True,
        prediction_types=("epsilon", "v_prediction"),
    ),
}
"""Every sampler that commands, evaluation, toy and benchmarks know."""

if TYPE_CHECKING:
    SamplerName = str
    TimestepSpacing = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
    """The type of a setting that names a sampler, so that a parser knows the choices."""
    TimestepSpacing = Literal[TIMESTEP_SPACINGS]

_OTHER_MODELS: Final = {
    "EDM": "networks with EDM's preconditioning",
    "FlowMatch": "flow-matching networks",
    "FlowMap": "flow-map networks",
    "CMStochasticIterative": "consistency models",
    "LCM": "networks distilled to latent consistency models",
    "TCD": "networks distilled for trajectory consistency",
    "SCM": "consistency models",
    "IPNDM": "networks trained on its own noise schedule",
    "KarrasVe": "networks trained on noise of growing variance",
    "ScoreSdeVe": "networks trained on noise of growing variance",
}
"""How the names of schedulers for other kinds of models begin, and what those models are."""

# Sampling starts from pure noise, and where alpha_bar of the first timestep is high the network takes that noise for an
# image. DDIM in ten steps on the digits, started at alpha_bar 0.02, 0.34, 0.65, 0.9 and 1: FID 1.7, 4.3, 14, 28 and 37.
ALPHA_BAR_WARNED_OF: Final = 0.3
ALPHA_BAR_REFUSED: Final = 0.9


def check_sampler(
    name: str,
    timestep_spacing: str | None = None,
    eta: float = 0.0,
    num_inference_steps: int | None = None,
    prediction_type: str | None = None,
) -> None:
    """See that a sampler is known, and right for these settings; None is one that is not known yet.

    Raises:
        ValueError: in one sentence.
    """
    if name not in SAMPLERS:
        raise ValueError(f"the sampler {name!r} is not known; use one of {', '.join(SAMPLERS)}")
    row = SAMPLERS[name]
    if timestep_spacing is not None and timestep_spacing not in row.timestep_spacings:
        having = [other for other, row in SAMPLERS.items() if timestep_spacing in row.timestep_spacings]
        or_another = f", or the sampler {' or '.join(having)}" if having else ""
        raise ValueError(
            f"the sampler {name} has no timestep_spacing {timestep_spacing!r}; use one of "
            f"{', '.join(row.timestep_spacings)}{or_another}"
        )
    if num_inference_steps is not None and num_inference_steps < row.fewest_steps:
        raise ValueError(
            f"the sampler {name} takes at least {row.fewest_steps} steps, and num_inference_steps is "
            f"{num_inference_steps}; give more, or use another sampler"
        )
    if eta and not row.has_eta:
        having = [other for other, row in SAMPLERS.items() if row.has_eta]
        raise ValueError(
            f"the sampler {name} has no eta, and eta is {eta:g}; make it 0, or use the sampler {' or '.join(having)}"
        )
    if prediction_type is not None and prediction_type not in (row.prediction_types or [prediction_type]):
        raise ValueError(
            f"the sampler {name} is for models of prediction_type {', '.join(row.prediction_types or ())}, and this "
            f"one has {prediction_type!r}; use the sampler ddim or ddpm"
        )


def make_scheduler(config: Mapping[str, Any], name: str, timestep_spacing: str | None = None) -> Any:
    """The scheduler of a sampler for a model; its timesteps are not set yet.

    Args:
        config: config of the model's own scheduler.
        name: one of `SAMPLERS`.
        timestep_spacing: spacing to use in place of the config's own.

    Raises:
        ValueError: if the sampler is unknown, or not right for the model's prediction type or the spacing.
    """
    check_sampler(name, timestep_spacing, prediction_type=config.get("prediction_type", "epsilon"))
    row = SAMPLERS[name]
    given = {} if timestep_spacing is None else {"timestep_spacing": timestep_spacing}
    return resolve_name(row.scheduler).from_config(config, **row.options, **given)


def sampler_of(scheduler: Any) -> Sampler | None:
    """The row that a scheduler is of, ours or diffusers'; None for one that has none."""
    for row in SAMPLERS.values():
        has_options = all(scheduler.config.get(key) == value for key, value in row.options.items())
        if row.scheduler.partition(":")[2] == type(scheduler).__name__ and has_options:
            return row
    return None


def check_scheduler(scheduler: Any) -> None:
    """See that a scheduler is for models such as these, which learn to remove noise from sqrt(abar) x_0.

    Raises:
        ValueError: in one sentence that names what works.
    """
    name = type(scheduler).__name__
    model = next((model for start, model in _OTHER_MODELS.items() if name.startswith(start)), None)
    if scheduler.config.get("use_flow_sigmas") or scheduler.config.get("prediction_type") == "flow_prediction":
        model = _OTHER_MODELS["FlowMatch"]
    if model is not None:
        raise ValueError(
            f"{name} is for {model} and draws wrong images from a DDPM's network; use a scheduler of one of these: "
            f"{', '.join(row.scheduler.partition(':')[2] for row in SAMPLERS.values())}."
        )


def check_start(scheduler: Any) -> None:
    """See that a scheduler whose grid is set can draw from pure noise; warn of timesteps that make poor images.

    Raises:
        ValueError: if it is for other models, or its first timestep is one at which images are nearly clean.
    """
    check_scheduler(scheduler)
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None:
        return
    times = sorted({round(float(t)) for t in scheduler.timesteps}, reverse=True)
    alpha_bars = [float(alphas_cumprod[t]) for t in times[:2]]
    where = f"start at timestep {times[0]} of {len(alphas_cumprod)}, where images are"
    remedy = "use timestep_spacing 'trailing', more steps, or timesteps that start higher"
    if alpha_bars[0] > ALPHA_BAR_REFUSED:
        raise ValueError(
            f"sampling would {where} nearly clean (alpha_bar {alpha_bars[0]:.2g}), and return little but noise; "
            f"{remedy}"
        )
    if alpha_bars[0] > ALPHA_BAR_WARNED_OF:
        _warn_once(
            f"The timesteps {where} not yet noise (alpha_bar {alpha_bars[0]:.2g}), and the images will be poor (FID of "
            f"the digits: 1.7 from alpha_bar 0.02, 4.3 from 0.34, 14 from 0.65); {remedy}."
        )
    sampler = sampler_of(scheduler)
    if sampler is None or sampler.largest_first_step is None or len(alpha_bars) < 2:
        return
    high, low = ((1 / max(alpha_bar, 1e-12) - 1) ** 0.5 for alpha_bar in alpha_bars)
    if high > sampler.largest_first_step * low:
        _warn_once(
            f"In the first step of {type(scheduler).__name__}, from timestep {times[0]} to {times[1]}, the noise level "
            f"falls by a factor of {high / low:.0f}; above {sampler.largest_first_step:g} the images are poor (FID of "
            "the digits: 0.95 at a factor of 8, 4.2 at 37, 26 at 3,500). Use timestep_spacing 'leading' or another "
            "sampler."
        )


@cache
def _warn_once(sentence: str) -> None:
    """A pipeline is called, and its grid looked at, once for each batch."""
    logger.warning(sentence)
