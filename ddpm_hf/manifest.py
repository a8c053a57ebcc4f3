"""manifest.json: what a folder of results was made from, so that it can be made again, and is not mixed with others."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ddpm_hf.files import LOCK, is_temporary, read_json, remove_temporaries, write_json

FILE = "manifest.json"


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a network's weights: of each one's name, type, shape and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """That of a folder; None where there is none.

    Raises:
        ValueError: it is not JSON.
    """
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path, "remove it, or give another --output")
    if not isinstance(content.get("settings"), dict):
        raise ValueError(f"{path} is no manifest of this program; give another --output")
    return content


def check_same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that was made with other settings.

    Raises:
        ValueError: naming what differs, or the files of a folder that has no manifest.
    """
    found = read_manifest(folder)
    if found is None:
        names = sorted({path.name for path in folder.iterdir()} - {LOCK}) if folder.is_dir() else []
        strangers = [name for name in names if not is_temporary(Path(name))]  # which a killed process left
        if strangers:
            raise ValueError(f"{folder} holds {', '.join(strangers[:3])} and no {FILE}; give an empty or new --output")
        return
    old, new = found["settings"], json.loads(json.dumps(settings))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        changes = ", ".join(f"{key} {_brief(old.get(key))} -> {_brief(new.get(key))}" for key in differing)
        raise ValueError(f"{folder} holds results of other settings ({changes}); give another --output")


def claim(folder: Path, settings: dict[str, Any], environment: dict[str, Any]) -> None:
    """Take a folder for results of these settings: clear away what a killed process left, and write the manifest.

    Args:
        folder: Made if it is not there. No process may be writing into it.
        settings: Those that decide what the results are.
        environment: Machine, versions, processes.

    Raises:
        ValueError: it holds something else.
    """
    check_same_settings(folder, settings)
    remove_temporaries(folder)
    write_manifest(folder, settings, environment)


def write_manifest(
    folder: Path, settings: dict[str, Any], environment: dict[str, Any], file: str = FILE, **more: Any
) -> None:
    """Write it.

    Args:
        folder: Made if it is not there.
        settings: Those that decide what the results are.
        environment: Machine, versions, processes.
        file: Its name.
        more: Other entries.
    """
    write_json(folder / file, {"settings": settings, "environment": environment, **more})


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-28:]}"
