"""Which files may leave this machine, and without what: no pickles, no absolute paths, no token."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token

from ddpm_hf.files import HASHES

Files = dict[str, Path | bytes]
"""Path in a repository -> a local path, or content."""

AS_THEY_ARE = (".safetensors", ".png", ".parquet", ".npz", ".md", ".py")


def public_files(folder: Path, *patterns: str, prefix: str = "") -> Files:
    """The files of a folder that match, as they may be published.

    Args:
        folder: Where they are.
        patterns: As for :meth:`Path.glob`.
        prefix: Comes before their names in the repository.

    Raises:
        ValueError: one is of a kind that is not published.
    """
    # The Hub has hashes of its own, and what is changed there may be changed on purpose.
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and path.name != HASHES}
    return {prefix + path.relative_to(folder).as_posix(): _public(path) for path in sorted(paths)}


def public(value: Any) -> Any:
    """A setting or result without absolute paths, of which the last part stays, at any depth."""
    if isinstance(value, Mapping):
        return {key: _command(item) if key == "command" else public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if isinstance(value, str):
        token = get_token()
        value = value.replace(token, "TOKEN") if token else value
        return Path(value).name if value.startswith("~") or Path(value).is_absolute() else value
    return value


def _public(path: Path) -> Path | bytes:
    if path.suffix in AS_THEY_ARE:
        return path
    text = path.read_text()
    if path.suffix == ".json":
        return (json.dumps(public(json.loads(text)), indent=2) + "\n").encode()
    if path.suffix == ".jsonl":
        return "".join(json.dumps(public(json.loads(line))) + "\n" for line in text.splitlines()).encode()
    if path.suffix == ".yaml":
        content = public(yaml.safe_load(text))
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120).encode()
    raise ValueError(f"{path} is of a kind that is not published; move it out of the folder")


def _command(line: Any) -> Any:
    if not isinstance(line, str):
        return public(line)
    words = (word.partition("=") for word in shlex.split(line))
    return shlex.join(f"{public(option)}{equals}{public(value)}" for option, equals, value in words)
