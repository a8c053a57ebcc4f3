"""Training objectives: what the network's output is compared with, and how much each time step counts."""

from typing import Final

from torch import Tensor

from ddpm_hf.diffusion import GaussianDiffusion

LOSS_WEIGHTINGS: Final = ("none", "min_snr")
"""`none` is L_simple of Ho et al. 2020 (eq. 14); `min_snr` is Hang et al. 2023 (eq. 9)."""


def training_loss(
    diffusion: GaussianDiffusion,
    model_output: Tensor,
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    prediction_type: str = "epsilon",
    weighting: str = "none",
    min_snr_gamma: float = 5.0,
) -> Tensor:
    """The weighted squared error of each image, in float32 whatever the network's precision.

    Args:
        diffusion: the process that made x_t of x_0 and the noise.
        model_output: (B, C, ...), for x_t and t.
        x_0: (B, C, ...), images in [-1, 1].
        noise: (B, C, ...).
        t: int64 (B,), within 0 .. T-1.
        prediction_type: one of `diffusion.PREDICTION_TYPES`.
        weighting: one of `LOSS_WEIGHTINGS`.
        min_snr_gamma: the SNR above which a step's weight falls; 5 in the paper.

    Returns:
        float32 (B,).

    Raises:
        ValueError: for an unknown prediction type or weighting, or one that does not go with the other.
    """
    target = diffusion.target(x_0.float(), noise.float(), t, prediction_type)
    squared_error = (model_output.float() - target).square().flatten(1).mean(dim=1)
    if weighting == "none":
        return squared_error
    if weighting == "min_snr":
        return squared_error * min_snr_weight(diffusion.snr(t), prediction_type, min_snr_gamma).to(squared_error)
    raise ValueError(f"weighting={weighting!r} is not known; use one of {', '.join(LOSS_WEIGHTINGS)}.")


def min_snr_weight(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """The weight of a step so that its error in x_0 counts min(SNR, gamma) (Hang et al. 2023, section 3.4).

    An error in the noise is one in x_0 times SNR, and an error in v is one in x_0 times SNR + 1.

    Raises:
        ValueError: for a prediction type other than epsilon, sample and v_prediction.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(
        f"min_snr weighting is defined for epsilon, sample and v_prediction, not {prediction_type!r}; "
        "use weighting='none'."
    )
