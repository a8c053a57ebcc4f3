"""A push: one commit that is to be, and what every command that pushes does around it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm_hf.hub.cards import LICENSE, dataset_card, read_json_if_there
from ddpm_hf.hub.public_files import Files, public, public_files
from ddpm_hf.hub.repository import PushError, Repository, Write


@dataclass(frozen=True)
class Push:
    """One commit to be made.

    Args:
        message: Its title.
        files: What it holds.
        card: Makes README.md.
        branch: Where it goes.
        mirror: Whether all else on the branch is removed.
    """

    message: str
    files: Files
    card: Write | None = None
    branch: str = "main"
    mirror: bool = False

    def to(self, repository: Repository) -> str:
        """Make the commit; returns its URL.

        Raises:
            PushError: it did not work.
        """
        return repository.commit(self.files, self.message, self.card, self.branch, self.mirror)


def samples_push(folder: Path, repository: str, license: str) -> Push:
    """The images that ddpm-hf-sample has put into parquet files.

    Raises:
        ValueError: there are none.
    """
    files = public_files(folder, "data/train-*.parquet", "manifest.json")
    if "manifest.json" not in files or len(files) == 1:
        raise ValueError(f"{folder} holds no samples in parquet files; make them by ddpm-hf-sample --format parquet")
    manifest = public(read_json_if_there(folder / "manifest.json"))
    message = f"{manifest['settings']['num_images']} samples"
    return Push(message, files, lambda present: dataset_card(repository, manifest, license, present))


def command_to_finish(folder: Path, repository: str, license: str, checkpoints: bool = False) -> str:
    """The command line that repeats a failed push."""
    command = ["ddpm-hf-push", str(folder), repository]
    command += ["--hub_license", license] if license != LICENSE else []
    return shlex.join([*command, "--checkpoints"] if checkpoints else command)


def prepare_once(repository: Repository, accelerator: Accelerator) -> None:
    """Have one process make the repository and see that it may write there, before hours of work rely on it.

    Raises:
        ValueError: on all processes, if it may not.
    """
    problem = None
    if accelerator.is_main_process:
        try:
            repository.prepare()
        except PushError as error:
            problem = str(error)
    problem = broadcast_object_list([problem])[0]
    if problem:
        raise ValueError(problem)
