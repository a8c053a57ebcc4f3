"""Which files may leave this machine, and without what: no links, no pickles, no private paths, no credentials."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import get_token

from ddpm_hf.files import HASHES

Files = dict[str, Path | bytes]
"""Path in a repository -> a local path, or content."""

AS_THEY_ARE = (".safetensors", ".png", ".parquet", ".npz", ".md", ".py")

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s'\"<>,;)\]}]*)")
# At the beginning of a word, or after what may stand before a path in a command or a list of settings.
_BEGIN = r"(?:(?<=^)|(?<=[\s'\"=,:;(\[{<|@]))"
_END = r"[^\s'\"=,;)\]}>|]*"
_OF_WINDOWS = rf"[A-Za-z]:[\\/]{_END}|\\\\{_END}"
_WINDOWS_PATH = re.compile(rf"{_BEGIN}(?:{_OF_WINDOWS})")
_PRIVATE_PATH = re.compile(
    rf"{_BEGIN}(?:"
    rf"~(?:[\w.-]+|(?=[\\/]))(?:[\\/]{_END})?"  # of a home
    rf"|/(?=[^\s/]){_END}"
    rf"|{_OF_WINDOWS}"
    rf"|(?:[^\s'\"=,:;(\[{{<|]*[\\/])?\.\.(?:[\\/]{_END})?(?![\w.])"  # out of the folder
    ")"
)


def public_files(folder: Path, *patterns: str, prefix: str = "") -> Files:
    """The files of a folder that match, as they may be published.

    Args:
        folder: Where they are.
        patterns: As for :meth:`Path.glob`.
        prefix: Comes before their names in the repository.

    Raises:
        ValueError: one is of a kind that is not published, a symbolic link or in a linked folder, or cannot be read.
    """
    # The Hub has hashes of its own, and what is changed there may be changed on purpose.
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.name != HASHES}
    for path in sorted(paths):
        parts = path.relative_to(folder).parts
        links = [link for end in range(1, len(parts) + 1) if (link := folder.joinpath(*parts[:end])).is_symlink()]
        if links:
            raise ValueError(
                f"{links[0]} is a symbolic link, and links are not published; put the files there, or move it"
            )
    return {prefix + path.relative_to(folder).as_posix(): _public(path) for path in sorted(paths) if path.is_file()}


def public(value: Any) -> Any:
    """A setting or result without what is private, at any depth.

    Of a path that is absolute or leaves the folder, and of a place that is not on the web, only the last part stays;
    credentials in addresses and tokens of the Hub go.
    """
    return _public_value(value, in_command=False)


def _public_value(value: Any, in_command: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            _public_value(key, in_command=False): _public_value(item, in_command or key == "command")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_public_value(item, in_command) for item in value]
    if isinstance(value, str):
        return _public_command(value) if in_command else _public_text(value)
    return value


def _public_text(text: str) -> str:
    token = get_token()
    text = _TOKEN.sub("TOKEN", text.replace(token, "TOKEN") if token else text)
    if text.startswith(("/", "~", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", text) or ".." in re.split(r"[\\/]", text):
        return _last_part(text)  # all of it is one path, which may hold spaces
    text = _URL.sub(_public_address, text)
    return _PRIVATE_PATH.sub(lambda found: _last_part(found[0]), text)


def _public_address(found: re.Match[str]) -> str:
    """An address on the web without user, password and query; of any other place the last part."""
    place = re.split(r"[?#]", found["rest"])[0].rpartition("@")[2]
    is_on_the_web = found["scheme"].lower() in ("http", "https", "hf")
    return f"{found['scheme']}://{place}" if is_on_the_web else _last_part(place)


def _last_part(path: str) -> str:
    # Windows' paths may have slashes of both kinds.
    name = PureWindowsPath(path.rstrip("\\/")).name
    return "PATH" if name in ("", "..", ".") or name.startswith("~") else name


def _public_command(line: str) -> str:
    line = _WINDOWS_PATH.sub(lambda found: _last_part(found[0]), line)  # whose backslashes a shell would take away
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark without another
        return _public_text(line)
    return shlex.join(map(_public_word, words))


def _public_word(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{_public_text(option)}{equals}{_public_text(value)}"


def _public(path: Path) -> Path | bytes:
    if path.suffix in AS_THEY_ARE:
        return path
    if path.suffix not in (".json", ".jsonl", ".yaml"):
        raise ValueError(f"{path} is of a kind that is not published; move it out of the folder")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return (json.dumps(public(json.loads(text)), indent=2) + "\n").encode()
        if path.suffix == ".jsonl":
            return "".join(json.dumps(public(line)) + "\n" for line in _readable_lines(text)).encode()
        content = public(yaml.safe_load(text))
        return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120).encode()
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({reason}); restore it, or move it out of the folder") from error


def _readable_lines(text: str) -> list[Any]:
    """Without one that a killed process left unfinished, and damaged ones."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
