"""A folder to the Hub: a run's or pipeline's model, or the samples that ddpm-hf-sample has put into parquet files.

    ddpm-hf-push runs/digits me/ddpm-digits
    ddpm-hf-push runs/digits me/ddpm-digits --checkpoints
    ddpm-hf-push samples me/digits-that-a-model-drew

It finishes what a run could not push; what is there already is not sent again.
"""

import sys
from pathlib import Path
from typing import Literal

from ddpm_hf.command_line import TOKEN_HELP, PlainParser, fail, take_token
from ddpm_hf.hub.cards import LICENSE
from ddpm_hf.hub.push import Push, samples_push
from ddpm_hf.hub.repository import NOT_PUSHED, PushError, Repository
from ddpm_hf.training.publish import checkpoint_push, model_push, newest_complete


def main() -> None:
    """The console command."""
    parser = PlainParser(prog="ddpm-hf-push", description="Push a model or samples to the Hub.", allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="A run, a pipeline, or samples in parquet files.")
    parser.add_argument("id", help="OWNER/NAME; made where it is not there yet.")
    parser.add_argument("--checkpoints", action="store_true", help="Push the newest checkpoint too, to resume from.")
    parser.add_argument("--hub_private_repo", action="store_true", help="Make it private, where it is made.")
    parser.add_argument("--hub_license", default=LICENSE, help="Of the model or images, for the card.")
    parser.add_argument("--hub_token", help=TOKEN_HELP)
    asked = parser.parse_args(take_token(sys.argv[1:]))
    try:
        kind, pushes = _pushes(asked.folder, asked.id, asked.hub_license, asked.checkpoints)
        repository = Repository(asked.id, kind, asked.hub_private_repo)
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
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give that of a run, of a pipeline or of samples")
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


if __name__ == "__main__":
    main()
