"""Models that commands are given: a folder of this machine, or one of the Hub, of which each process needs the same."""

from pathlib import Path

from accelerate import Accelerator

from ddpm_hf.hub.repository import told_in_one_sentence
from ddpm_hf.launch import decided_by_main
from ddpm_hf.pipeline import DDPMCustomPipeline, check_local_folder


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

    def download(revision: str | None) -> Path:
        check_local_folder(Path(model))
        if Path(model).exists():
            return Path(model)
        with told_in_one_sentence(model):
            return Path(DDPMCustomPipeline.download(model, revision=revision))

    folder = decided_by_main(accelerator, lambda: download(revision))
    if folder == Path(model):
        return model, None
    if not folder.exists():  # on another machine than the main process
        folder = download(folder.name)
    return str(folder), folder.name
