"""Settings that differ between a run and what it goes on from, and which of them it may."""

from collections.abc import Mapping
from typing import Any

from ddpm_hf.settings import flat, plain
from ddpm_hf.training.idle import defaults_by_name

# What a run that goes on may change, because it says where the run happens, what it writes and how fast it is, not what
# is learnt. A group's name stands for all of its settings.
FREE_TO_CHANGE = frozenset(
    {"output_dir", "threads", "quiet", "resume", "dry_run", "evaluation", "data.cache_dir"}
    | {"init_partial"}  # what it allowed was done before the first step
    | {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_license", "hub_strategy"}
    | {"diffusion.timestep_spacing"}  # of samples alone
    | {"data.name"}  # the images themselves are compared, wherever they lie
    | {f"training.{name}" for name in ("log_every", "trackers", "sample_every", "max_skipped_steps")}
    | {f"training.{name}" for name in ("checkpoint_every", "checkpoints_total_limit", "gradient_accumulation_steps")}
    | {"training.ema_snapshot_every"}
    | {f"training.{name}" for name in ("compile", "channels_last", "gradient_checkpointing", "tf32", "deterministic")}
)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two :meth:`Config.to_dict`, by their names on the command line.

    Those that an earlier version did not have count as their defaults.
    """
    old, new = plain(defaults_by_name()) | flat(before), flat(after)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def refused_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The changes of :func:`changes` with which a run must not resume."""
    free = set(FREE_TO_CHANGE)
    if before["training"]["lr_schedule"] == after["training"]["lr_schedule"] == "constant":
        free.add("training.steps")  # the others are stretched over all the steps
    found = changes(before, after)
    if found.get("data.center_crop") == (False, None):  # what false let through has the shape that null cuts out
        free.add("data.center_crop")
    return {key: change for key, change in found.items() if not {key, key.partition(".")[0]} & free}
