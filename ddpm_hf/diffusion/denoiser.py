"""Denoiser: the one place where a network's output gets its meaning."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ddpm_hf.diffusion.choices import PREDICTION_TYPES
from ddpm_hf.diffusion.process import GaussianDiffusion

Network = Callable[[Tensor, int | Tensor, Tensor | None], Tensor]
"""(x_t (B, C, ...), t, labels int64 (B,) or None) -> (B, C, ...), or (B, 2C, ...) where the variance is learned."""


class Prediction(NamedTuple):
    """A denoiser's prediction at x_t.

    Attributes:
        x_0: (B, C, ...), clipped where the denoiser clips.
        noise: (B, C, ...), from the network's output alone: where x_0 was clipped, the two do not add up to x_t.
        log_variance: log of the variance of p(x_s | x_t); of t's shape, or (B, C, ...) where it is learned.
    """

    x_0: Tensor
    noise: Tensor
    log_variance: Tensor


class Restriction(Protocol):
    """Brings a predicted x_0 (B, C, ...) into the range of the data."""

    def __call__(self, x_0: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Clipping:
    """Clips x_0 to [-bound, bound]."""

    bound: float

    def __call__(self, x_0: Tensor) -> Tensor:
        """Any shape."""
        return x_0.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Thresholding:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): each image is clipped to [-s, s] and divided by s.

    s is the `ratio` quantile of the image's absolute values, kept within [1, largest].
    """

    ratio: float
    largest: float

    def __call__(self, x_0: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        x = x_0.flatten(1).to(torch.promote_types(x_0.dtype, torch.float32))
        s = torch.quantile(x.abs(), self.ratio, dim=1, keepdim=True)
        s = s.clamp(min=1, max=self.largest)
        return (x.clamp(-s, s) / s).reshape(x_0.shape).to(x_0.dtype)


@dataclass(frozen=True)
class Denoiser:
    r"""A network with what its output means: denoiser(x_t, t, class_labels) -> (x_0, noise, log-variance).

    Losses, the variational bound, the likelihood, samplers and pipelines ask it, so that a new parametrisation is one
    subclass and one row of `choices.PREDICTION_TYPES`. The stages, each a method that a subclass may replace:

    1. `output`: the network sees (x_t, t). EDM's preconditioning, for example, would scale both first.
    2. `predict`: with :math:`x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t}\, n`, an output o stands for

        * `epsilon`: :math:`n = o`, so :math:`x_0 = (x_t - \sqrt{1 - \bar\alpha_t}\, o) / \sqrt{\bar\alpha_t}`
        * `sample`: :math:`x_0 = o`, so :math:`n = (x_t - \sqrt{\bar\alpha_t}\, o) / \sqrt{1 - \bar\alpha_t}`
        * `v_prediction`: :math:`x_0 = \sqrt{\bar\alpha_t} x_t - \sqrt{1 - \bar\alpha_t}\, o`,
          :math:`n = \sqrt{1 - \bar\alpha_t} x_t + \sqrt{\bar\alpha_t}\, o`
        * `posterior_mean`: :math:`x_0 = (o - c_t x_t) / c_0` with the posterior's :math:`c_0, c_t`

        and x_0 is then clipped or thresholded, if samplers do that.

    3. `log_variance`: of :math:`p(x_s | x_t)`, fixed or made of the second half of the network's channels
       (`GaussianDiffusion.log_variance`).
    4. `target`: what the output is trained to be, the inverse of `predict`.

    Args:
        diffusion: the process that the network was trained on.
        prediction_type: one of `choices.PREDICTION_TYPES`.
        variance_type: one of `choices.VARIANCE_TYPES`.
        restriction: clipping or thresholding of the predicted x_0; None for neither.
        network: the network that `output` calls; None where outputs are given (a scheduler's `step`).
        half_bin: half the distance of neighbouring values of the data in [-1, 1], one for all channels or one for each:
            the decoder of the variational bound gives probabilities to bins of twice that width.

    Examples:
        >>> diffusion = GaussianDiffusion(torch.linspace(0.0001, 0.02, 1000))
        >>> denoiser = Denoiser(diffusion, network=lambda x_t, t, class_labels: torch.zeros_like(x_t))
        >>> x_0, noise, log_variance = denoiser(torch.randn(2, 3, 32, 32), 500)
        >>> x_0.shape
        torch.Size([2, 3, 32, 32])
    """

    diffusion: GaussianDiffusion
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    restriction: Restriction | None = None
    network: Network | None = None
    half_bin: tuple[float, ...] = (1 / 255,)

    def __call__(
        self, x_t: Tensor, t: int | Tensor, class_labels: Tensor | None = None, s: int | Tensor | None = None
    ) -> Prediction:
        """Ask the network, and read its output.

        Args:
            x_t: (B, C, ...).
            t: one time for all, or int64 (B,); 0 .. T-1.
            class_labels: int64 (B,) for a network that knows classes.
            s: the time that the log-variance leads to; t - 1 when None.

        Raises:
            ValueError: for an unknown prediction or variance type, or a learned one without its channels.
        """
        output, variance = split_variance(self.output(x_t, t, class_labels), x_t)
        x_0, noise = self.predict(output, x_t, t)
        return Prediction(x_0, noise, self.log_variance(variance, t, t - 1 if s is None else s))

    def of(self, network: Network) -> Self:
        """The same with a network."""
        return replace(self, network=network)

    def without_restriction(self) -> Self:
        """The same that leaves the predicted x_0 as it is, as in training."""
        return replace(self, restriction=None)

    def output(self, x_t: Tensor, t: int | Tensor, class_labels: Tensor | None = None) -> Tensor:
        """What the network says of x_t, (B, C, ...) or (B, 2C, ...)."""
        assert self.network is not None, "this denoiser reads given outputs only; give it a network by of()"
        return self.network(x_t, t, class_labels)

    def predict(self, model_output: Tensor, x_t: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, noise), both (B, C, ...), of an output (B, C, ...) without its channels of variance."""
        x_0, noise = self.diffusion.predict(model_output, x_t, t, self.prediction_type)
        return x_0 if self.restriction is None else self.restriction(x_0), noise

    def log_variance(self, model_variance: Tensor | None, t: int | Tensor, s: int | Tensor) -> Tensor:
        """log of the variance of p(x_s | x_t), from the second half of the channels where it is learned."""
        return self.diffusion.log_variance(t, s, self.variance_type, model_variance)

    def target(self, x_0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """What the network should output at x_t = q_sample(x_0, t, noise), (B, C, ...)."""
        return self.diffusion.target(x_0, noise, t, self.prediction_type)


@dataclass(frozen=True)
class Guided:
    """A network under classifier-free guidance (Ho & Salimans 2022): without + scale (given - without).

    The variance, where one is learned, is that of the given class: beyond it lies nothing that it could mean.

    Args:
        network: trained with labels dropped at random.
        scale: w; 1 is no guidance.
        no_class: the label that stands for "no class".
    """

    network: Network
    scale: float
    no_class: int

    def __call__(self, x_t: Tensor, t: int | Tensor, class_labels: Tensor | None) -> Tensor:
        """As the network, which is asked once with 2B images.

        Raises:
            ValueError: without class labels.
        """
        if class_labels is None:
            raise ValueError("guidance_scale needs class_labels, the classes to guide to.")
        labels = torch.cat([torch.full_like(class_labels, self.no_class), class_labels])
        without, given = self.network(torch.cat([x_t, x_t]), t, labels).chunk(2)
        output = without + self.scale * (given - without)
        output[:, x_t.shape[1] :] = given[:, x_t.shape[1] :]
        return output


def denoiser_class(prediction_type: str) -> type[Denoiser]:
    """The class that reads outputs of this type; that of an unknown one says so when it is asked."""
    found: type[Denoiser] = resolve_name(PREDICTION_TYPES.get(prediction_type, PREDICTION_TYPES["epsilon"]))
    return found


def split_variance(
    model_output: Tensor, sample: Tensor, may_have_variance: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The prediction (B, C, ...) for a sample (B, C, ...), and what the output says of the variance, or None.

    Raises:
        ValueError: the output has another shape.
    """
    for name, value in (("model's output", model_output), ("sample", sample)):
        if not isinstance(value, Tensor) or value.ndim < 2:
            raise ValueError(f"the {name} must be a tensor of images, (B, C, ...), and is a {type(value).__name__}.")
    given, expected = model_output.shape[1], sample.shape[1]
    if model_output.shape[:1] + model_output.shape[2:] != sample.shape[:1] + sample.shape[2:]:
        raise ValueError(
            f"the model's output is of shape {tuple(model_output.shape)} and the sample of {tuple(sample.shape)}; they "
            "must be equal but for channels."
        )
    if may_have_variance and given == 2 * expected:
        prediction, variance = model_output.chunk(2, dim=1)
        return prediction, variance
    if given != expected:
        hint = "; a network that learned its variance needs variance_type='learned' or 'learned_range'"
        raise ValueError(
            f"the model's output has {given} channels and the sample {expected}; they must be equal"
            f"{hint if given == 2 * expected else ''}."
        )
    return model_output, None
