"""Models that are given by name: a folder of this machine, or one of the Hub, of which each process needs the same."""

from pathlib import Path

from accelerate import Accelerator

from ddpm_hf.launch import decided_by_main
from ddpm_hf.model_folder import OnlyVariant, check_local_folder
from ddpm_hf.pipeline import DDPMCustomPipeline


def local_folder(model: str, revision: str | None, accelerator: Accelerator) -> tuple[str, str | None]:
    """The folder of a model on this machine, and the commit it came from, for a model on the Hub.

    Args:
        model: A folder or a Hub id.
        revision: Branch, tag or commit of the Hub; None for main.
        accelerator: Its processes, which must all ask, get the same commit, though a branch may move meanwhile.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be downloaded, in one sentence.
    """

    def from_hub(revision: str | None) -> Path:
        try:
            return Path(DDPMCustomPipeline.download(model, revision=revision))
        except OnlyVariant as found:
            return Path(DDPMCustomPipeline.download(model, revision=found.commit, variant=found.variant))

    def download(revision: str | None) -> Path:
        check_local_folder(Path(model))
        if Path(model).exists():
            return Path(model)
        try:
            return from_hub(revision)
        except OSError as error:
            if revision is not None or error.errno is not None:
                raise
            # The id may be a folder's name, mistyped.
            raise OSError(f"{error} (nor is there a folder {model} on this machine)") from error

    folder = decided_by_main(accelerator, lambda: download(revision))
    if folder == Path(model):
        return model, None
    if not folder.exists():  # on another machine than the main process
        folder = download(folder.name)
    return str(folder), folder.name
