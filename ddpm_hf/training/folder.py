"""What a new run may find in its folder: nothing that its files would take the place of."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ddpm_hf.training.changes import refused_changes
from ddpm_hf.training.log import read_log

# What a run leaves that ended before its first checkpoint; the same run may begin once more.
_OF_A_RUN = {"config.yaml", "environment.json", "metrics.jsonl", "samples", "averages", "best"} | {
    *("ddpm_hf", "wandb", "trackio")
}
# What no run writes and people put beside one: hidden files, what the program printed, recipes.
_HARMLESS = re.compile(r"\..*|lost\+found|.*\.(log|out|err|txt|ya?ml)")


def refuse_to_replace(folder: Path, settings: Mapping[str, Any]) -> None:
    """See that a run that begins in ``folder``, with no checkpoint there, replaces and mixes with nothing of value.

    Args:
        folder: The run's; it may be missing.
        settings: The run's settings, as :meth:`Config.to_dict` gives them.

    Raises:
        ValueError: with what is there, and the two ways out.
    """
    found = {path.name for path in folder.iterdir() if path.name != "checkpoints"} if folder.is_dir() else set()
    of_a_run = found & _OF_A_RUN
    kept = sorted(name for name in found - _OF_A_RUN if name == "config.yaml" or not _HARMLESS.fullmatch(name))
    if of_a_run and not _is_same_run(folder, settings):
        kept = sorted(of_a_run) + kept
    if kept:
        shown = ", ".join(kept[:6]) + (f" and {len(kept) - 6} more" if len(kept) > 6 else "")
        raise ValueError(
            f"{folder} holds {shown}, and no checkpoint from which this run could go on; give another --output_dir, "
            "or replace what is there with --resume never"
        )


def _is_same_run(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the files of a run are this one's, or nothing was done yet that they could be of."""
    if (folder / "environment.json").exists() and not (folder / "best").exists() and not _steps_logged(folder):
        return True
    try:
        return not refused_changes(yaml.safe_load((folder / "config.yaml").read_text()), settings)
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return False


def _steps_logged(folder: Path) -> bool:
    log = folder / "metrics.jsonl"
    return log.exists() and len(read_log(log)) > 0
