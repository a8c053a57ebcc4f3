"""At which steps of a sampler there is guidance."""

from typing import Any

import numpy as np


def guided_steps(scheduler: Any, interval: tuple[float, float] | None) -> list[bool]:
    r"""Whether each of a scheduler's timesteps has guidance (Kynkaanniemi et al. 2024, section 3).

    Guidance at high noise levels costs diversity, and at low ones it changes nothing that can be seen. So it is left
    out but for :math:`\sigma_{low} < \sigma(t) \le \sigma_{high}`, with
    :math:`\sigma(t) = \sqrt{(1 - \bar\alpha_t) / \bar\alpha_t}`.

    Args:
        scheduler: Any of diffusers' with alpha bars, its timesteps set; between whole t, log sigma is interpolated.
        interval: The two noise levels; None for guidance at all of them.
    """
    if interval is None:  # without a look at the timesteps, for which the host would wait for the device
        return [True] * len(scheduler.timesteps)
    timesteps = np.asarray(scheduler.timesteps.tolist())
    alpha_bars = scheduler.alphas_cumprod.double().cpu().numpy().clip(1e-20, 1 - 1e-20)
    sigmas = np.exp(np.interp(timesteps, np.arange(len(alpha_bars)), 0.5 * np.log(1 / alpha_bars - 1)))
    low, high = interval
    return [bool(low < sigma <= high) for sigma in sigmas]
