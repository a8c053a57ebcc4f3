"""Training objectives: what the network's output is compared with, and how much each time step counts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_hf.diffusion.checks import check_objective, check_weighting
from ddpm_hf.diffusion.denoiser import Denoiser, split_variance
from ddpm_hf.diffusion.variational import bound_term


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Args:
        loss: one of `choices.LOSSES`.
        vlb_weight: lambda of `hybrid`.
        weighting: one of `choices.LOSS_WEIGHTINGS`, for the squared error.
        min_snr_gamma: the SNR above which a step's weight falls; 5 in the paper.
        p2_gamma: the power of `p2`; 0.5 or 1 in the paper.
    """

    loss: str = "simple"
    vlb_weight: float = 0.001
    weighting: str = "none"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0


SIMPLE = Objective()
"""The unweighted squared error of Ho et al. 2020."""


def training_loss(
    denoiser: Denoiser, model_output: Tensor, x_0: Tensor, noise: Tensor, t: Tensor, objective: Objective = SIMPLE
) -> Tensor:
    """The objective of each image, in float32 whatever the network's precision.

    * `simple`: the weighted mean of squared errors.
    * `kl`: T times the image's term of the variational bound, in bits/dim: with uniform t its mean is the bound
      without L_T.
    * `hybrid`: simple + vlb_weight kl, where the bound sees the predicted mean as a constant, so that it teaches the
      variance alone. (Nichol & Dhariwal's code has lambda = T / 1000 for one term: that is 0.001 here.)

    Args:
        denoiser: says what the output should be; one that restricts no x_0.
        model_output: (B, C, ...), for x_t and t; (B, 2C, ...) where the variance is learned.
        x_0: (B, C, ...), images in [-1, 1]; for the bound they lie on the levels of the denoiser's bins.
        noise: (B, C, ...).
        t: int64 (B,), within 0 .. T-1.
        objective: what is minimised.

    Returns:
        float32 (B,).

    Raises:
        ValueError: for an unknown setting, or one that does not go with the others.
    """
    loss, weighting = objective.loss, objective.weighting
    check_objective(loss, denoiser.variance_type, weighting)
    x_0, noise, model_output = x_0.float(), noise.float(), model_output.float()
    diffusion = denoiser.diffusion

    def bound(output: Tensor) -> Tensor:
        x_t = diffusion.q_sample(x_0, t, noise)
        return diffusion.num_train_timesteps * bound_term(denoiser, output, x_0, x_t, t)

    if loss == "kl":
        return bound(model_output)

    prediction, variance = split_variance(model_output, x_0, may_have_variance=loss == "hybrid")
    squared_error = (prediction - denoiser.target(x_0, noise, t)).square().flatten(1).mean(dim=1)
    if weighting == "min_snr":
        weight = min_snr_weight(diffusion.snr(t), denoiser.prediction_type, objective.min_snr_gamma)
        squared_error = squared_error * weight.to(x_0)
    elif weighting == "p2":
        weight = p2_weight(diffusion.snr(t), denoiser.prediction_type, objective.p2_gamma)
        squared_error = squared_error * weight.to(x_0)
    if loss == "simple":
        return squared_error
    assert variance is not None, "hybrid goes with a learned variance only"
    return squared_error + objective.vlb_weight * bound(torch.cat([prediction.detach(), variance], dim=1))


def min_snr_weight(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """The weight of a step so that its error in x_0 counts min(SNR, gamma) (Hang et al. 2023, section 3.4).

    An error in the noise is one in x_0 times SNR, and an error in v is one in x_0 times SNR + 1.

    Raises:
        ValueError: for a prediction type other than epsilon, sample and v_prediction.
    """
    check_weighting("min_snr", prediction_type)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    weight = snr.clamp(max=gamma)
    return weight if prediction_type == "sample" else weight / (snr + 1)


def p2_weight(snr: Tensor, prediction_type: str, gamma: float = 1.0) -> Tensor:
    """The weight of a step so that its error in the noise counts 1 / (1 + SNR)^gamma (Choi et al. 2022, eq. 8, k = 1).

    Raises:
        ValueError: for a prediction type other than epsilon, sample and v_prediction.
    """
    check_weighting("p2", prediction_type)
    weight = (1 + snr) ** -gamma
    if prediction_type == "epsilon":
        return weight
    return weight * snr if prediction_type == "sample" else weight * snr / (snr + 1)
