"""Models that are given by name: a folder of this machine, or one of the Hub, of which each process needs the same."""

from pathlib import Path

from accelerate import Accelerator

from ddpm_hf.hub.repository import AT_THE_START, api_of, retried, told_in_one_sentence
from ddpm_hf.launch import decided_by_main
from ddpm_hf.pipeline import DDPMCustomPipeline, check_local_folder, network_in, variants_of


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
        with told_in_one_sentence(model):
            folder = Path(DDPMCustomPipeline.download(model, revision=revision))
            variant = None if any(network_in(folder).glob("*.safetensors")) else _only_variant(model, folder.name)
            if variant is not None:
                folder = Path(DDPMCustomPipeline.download(model, revision=folder.name, variant=variant))
            return folder

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


def _only_variant(model: str, commit: str) -> str | None:
    """The one variant of which a model on the Hub has weights; None where there are several, or none."""
    api = api_of(None)
    names = retried(lambda: api.list_repo_files(model, revision=commit), model, AT_THE_START)
    found = variants_of(names)
    return found.pop() if len(found) == 1 else None
