"""DDPM (Ho et al. 2020) and DDIM (Song et al. 2021) for the Hugging Face stack.

The public names below are loaded when they are first used (PEP 562), so that `import ddpm_hf` loads neither torch nor
diffusers. Each folder is a chapter, whose own docstring says what it holds and where to start reading.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_hf.diffusion.denoiser import Denoiser
    from ddpm_hf.diffusion.process import GaussianDiffusion
    from ddpm_hf.models.unet_2d import UNet2DModel
    from ddpm_hf.notebook import Trained, train, training_config
    from ddpm_hf.pipeline import DDPMCustomPipeline
    from ddpm_hf.schedulers.adams import AdamsScheduler
    from ddpm_hf.schedulers.ddim import DDIMScheduler
    from ddpm_hf.schedulers.ddpm import DDPMScheduler

__version__ = "0.1.0"

__all__ = [
    "AdamsScheduler",
    "DDIMScheduler",
    "DDPMCustomPipeline",
    "DDPMScheduler",
    "Denoiser",
    "GaussianDiffusion",
    "Trained",
    "UNet2DModel",
    "__version__",
    "train",
    "training_config",
]

_HOMES = {
    "AdamsScheduler": "schedulers.adams",
    "DDIMScheduler": "schedulers.ddim",
    "DDPMCustomPipeline": "pipeline",
    "DDPMScheduler": "schedulers.ddpm",
    "Denoiser": "diffusion.denoiser",
    "GaussianDiffusion": "diffusion.process",
    "Trained": "notebook",
    "UNet2DModel": "models.unet_2d",
    "train": "notebook",
    "training_config": "notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
