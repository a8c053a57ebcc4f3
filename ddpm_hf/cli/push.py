"""A folder to the Hub: a run's or pipeline's model, or the samples that ddpm-hf-sample has put into parquet files.

    ddpm-hf-push runs/digits me/ddpm-digits
    ddpm-hf-push runs/digits me/ddpm-digits --checkpoints
    ddpm-hf-push samples me/digits-that-a-model-drew

It also finishes the push of a run that failed; files that are on the Hub already are not sent again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ddpm_hf.command_line import ending_in_one_sentence, parse_settings


@dataclass(frozen=True)
class PushConfig:
    """Settings of ddpm-hf-push.

    Args:
        folder: Folder of a run, of a pipeline, or of samples in parquet files.
        id: OWNER/NAME of the repository on the Hub, which is created if it does not exist.
        checkpoints: Also push the newest checkpoint, so that training can resume from it.
        hub_private_repo: Make the repository private when it is created.
        hub_license: License of the model or images, for the card.
    """

    folder: Path
    id: str
    checkpoints: bool = False
    hub_private_repo: bool = False
    hub_license: str = "apache-2.0"

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder; give that of a run, of a pipeline or of samples")


@ending_in_one_sentence()
def main() -> None:
    """The console command."""
    config = parse_settings(PushConfig, sys.argv[1:], "Push a model or samples to the Hub.", is_positional=True)
    from ddpm_hf.cli import pushing  # only now, as it loads torch

    pushing.run(config)


if __name__ == "__main__":
    main()
