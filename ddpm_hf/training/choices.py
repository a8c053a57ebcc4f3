"""The parts of training that settings choose by name, each as "module:name"; nothing here loads torch."""

from typing import Final

OPTIMIZERS: Final = {
    "adam": "ddpm_hf.training.optimization:adam",
    "adamw": "ddpm_hf.training.optimization:adamw",
    "muon": "ddpm_hf.training.muon:muon",
}
"""Optimizers: functions (parameters, `OptimizerOptions`) -> torch.optim.Optimizer."""

LR_SCHEDULES: Final = {
    "constant": "ddpm_hf.training.optimization:constant",
    "cosine": "ddpm_hf.training.optimization:cosine",
    "linear": "ddpm_hf.training.optimization:linear",
}
"""Schedules after the warm-up: functions of the progress in [0, 1] -> factor of the learning rate."""

TRACKERS: Final = {
    "trackio": "ddpm_hf.training.trackers:trackio",
    "tensorboard": "ddpm_hf.training.trackers:tensorboard",
    "wandb": "ddpm_hf.training.trackers:wandb",
    "comet_ml": "ddpm_hf.training.trackers:comet_ml",
    "aim": "ddpm_hf.training.trackers:aim",
    "mlflow": "ddpm_hf.training.trackers:mlflow",
    "clearml": "ddpm_hf.training.trackers:clearml",
    "dvclive": "ddpm_hf.training.trackers:dvclive",
    "swanlab": "ddpm_hf.training.trackers:swanlab",
}
"""Trackers, by accelerate's names, which pip knows too: functions that give one a picture of a step."""
