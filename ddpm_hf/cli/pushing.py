"""What ddpm-hf-push does, once its settings are known to be right."""

from pathlib import Path
from typing import Literal

from ddpm_hf.cli.push import PushConfig
from ddpm_hf.command_line import fail
from ddpm_hf.hub.push import Push, samples_push
from ddpm_hf.hub.repository import NOT_PUSHED, PushError, Repository
from ddpm_hf.training.checkpoint_files import newest_complete
from ddpm_hf.training.publish import checkpoint_push, model_push


def run(config: PushConfig) -> None:
    """Push, and print where it is now; problems end the program."""
    try:
        kind, pushes = _pushes(config.folder, config.id, config.hub_license, config.checkpoints)
        repository = Repository(config.id, kind, config.hub_private_repo)
    except (ValueError, OSError) as error:
        fail(str(error))
    try:
        repository.prepare()
        for push in pushes:
            print(push.to(repository))
    except PushError as error:
        fail(str(error), status=NOT_PUSHED)


def _pushes(
    folder: Path, repository: str, license: str, checkpoints: bool
) -> tuple[Literal["model", "dataset"], list[Push]]:
    """What kind of repository a folder makes, and what is pushed to it."""
    if (folder / "manifest.json").exists() and not (folder / "model_index.json").exists():
        if checkpoints:
            raise ValueError(f"{folder} holds samples, which have no checkpoints; leave --checkpoints out")
        return "dataset", [samples_push(folder, repository, license)]
    pushes = [model_push(folder, repository, license)]
    if checkpoints:
        newest = newest_complete(folder / "checkpoints")
        if newest is None:
            raise ValueError(f"{folder} has no complete checkpoint; leave --checkpoints out")
        pushes.append(checkpoint_push(folder, newest))
    return "model", pushes
