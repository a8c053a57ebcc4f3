"""Training objectives: what the network's output is compared with, and how much each time step counts."""

from typing import Final

import torch
from torch import Tensor

from ddpm_hf.diffusion.process import VARIANCE_TYPES, GaussianDiffusion
from ddpm_hf.diffusion.variational import bound_term

LOSSES: Final = ("simple", "kl", "hybrid")
"""`simple` is the squared error (Ho et al. 2020, eq. 14), `kl` the variational bound (eq. 5), `hybrid` both (Nichol &
Dhariwal 2021, eq. 16)."""

LOSS_WEIGHTINGS: Final = ("none", "min_snr", "p2")
"""Of the squared error: `min_snr` is Hang et al. 2023 (eq. 9), `p2` is Choi et al. 2022 (eq. 8)."""


def training_loss(
    diffusion: GaussianDiffusion,
    model_output: Tensor,
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    prediction_type: str = "epsilon",
    weighting: str = "none",
    min_snr_gamma: float = 5.0,
    *,
    p2_gamma: float = 1.0,
    loss: str = "simple",
    vlb_weight: float = 0.001,
    variance_type: str = "fixed_small",
) -> Tensor:
    """The objective of each image, in float32 whatever the network's precision.

    * `simple`: the weighted mean of squared errors.
    * `kl`: T times the image's term of the bound, in bits/dim: with uniform t its mean is the bound without L_T.
    * `hybrid`: simple + vlb_weight kl, where the bound sees the predicted mean as a constant, so that it teaches the
      variance alone. (Nichol & Dhariwal's code has lambda = T / 1000 for one term: that is 0.001 here.)

    Args:
        diffusion: the process that made x_t of x_0 and the noise.
        model_output: (B, C, ...), for x_t and t; (B, 2C, ...) where the variance is learned.
        x_0: (B, C, ...), images in [-1, 1]; for the bound they lie on its 256 levels.
        noise: (B, C, ...).
        t: int64 (B,), within 0 .. T-1.
        prediction_type: one of `diffusion.PREDICTION_TYPES`.
        weighting: one of `LOSS_WEIGHTINGS`, for the squared error.
        min_snr_gamma: the SNR above which a step's weight falls; 5 in the paper.
        p2_gamma: the power of `p2`; 0.5 or 1 in the paper.
        loss: one of `LOSSES`.
        vlb_weight: lambda of `hybrid`.
        variance_type: one of `diffusion.VARIANCE_TYPES`, for the bound.

    Returns:
        float32 (B,).

    Raises:
        ValueError: for an unknown setting, or one that does not go with the others.
    """
    check_objective(loss, variance_type, weighting)
    x_0, noise, model_output = x_0.float(), noise.float(), model_output.float()

    def bound(output: Tensor) -> Tensor:
        x_t = diffusion.q_sample(x_0, t, noise)
        terms = bound_term(diffusion, output, x_0, x_t, t, prediction_type, variance_type)
        return diffusion.num_train_timesteps * terms

    if loss == "kl":
        return bound(model_output)

    channels = x_0.shape[1]
    prediction = model_output[:, :channels] if loss == "hybrid" else model_output
    target = diffusion.target(x_0, noise, t, prediction_type)
    squared_error = (prediction - target).square().flatten(1).mean(dim=1)
    if weighting == "min_snr":
        squared_error = squared_error * min_snr_weight(diffusion.snr(t), prediction_type, min_snr_gamma).to(x_0)
    elif weighting == "p2":
        squared_error = squared_error * p2_weight(diffusion.snr(t), prediction_type, p2_gamma).to(x_0)
    if loss == "simple":
        return squared_error
    return squared_error + vlb_weight * bound(torch.cat([prediction.detach(), model_output[:, channels:]], dim=1))


def check_objective(loss: str, variance_type: str, weighting: str = "none") -> None:
    """See that a loss teaches what is asked of it, and nothing is asked for nothing.

    Raises:
        ValueError: for an unknown loss, variance type or weighting, or one that does not go with the others.
    """
    settings = (
        ("loss", loss, LOSSES),
        ("variance_type", variance_type, VARIANCE_TYPES),
        ("weighting", weighting, LOSS_WEIGHTINGS),
    )
    for name, value, known in settings:
        if value not in known:
            raise ValueError(f"{name}={value!r} is not known; use one of {', '.join(known)}.")
    is_learned = variance_type.startswith("learned")
    if loss == "simple" and is_learned:
        raise ValueError(
            f"variance_type={variance_type!r} learns nothing from loss='simple', which has no gradient for the "
            "variance; use loss='hybrid' or 'kl', or variance_type='fixed_small'."
        )
    if loss == "hybrid" and not is_learned:
        raise ValueError(
            f"loss='hybrid' adds nothing to 'simple' with variance_type={variance_type!r}, as its bound teaches the "
            "variance alone; use variance_type='learned_range', or loss='simple'."
        )
    if loss == "kl" and weighting != "none":
        raise ValueError(
            f"weighting={weighting!r} does not go with loss='kl', which weighs each step itself; use 'none'."
        )


def min_snr_weight(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """The weight of a step so that its error in x_0 counts min(SNR, gamma) (Hang et al. 2023, section 3.4).

    An error in the noise is one in x_0 times SNR, and an error in v is one in x_0 times SNR + 1.

    Raises:
        ValueError: for a prediction type other than epsilon, sample and v_prediction.
    """
    _check_weighted("min_snr", prediction_type)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    weight = snr.clamp(max=gamma)
    return weight if prediction_type == "sample" else weight / (snr + 1)


def p2_weight(snr: Tensor, prediction_type: str, gamma: float = 1.0) -> Tensor:
    """The weight of a step so that its error in the noise counts 1 / (1 + SNR)^gamma (Choi et al. 2022, eq. 8, k = 1).

    Raises:
        ValueError: for a prediction type other than epsilon, sample and v_prediction.
    """
    _check_weighted("p2", prediction_type)
    weight = (1 + snr) ** -gamma
    if prediction_type == "epsilon":
        return weight
    return weight * snr if prediction_type == "sample" else weight * snr / (snr + 1)


def _check_weighted(weighting: str, prediction_type: str) -> None:
    if prediction_type not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            f"{weighting} weighting is defined for epsilon, sample and v_prediction, not {prediction_type!r}; "
            "use weighting='none'."
        )
