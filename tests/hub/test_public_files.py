"""Nothing private leaves the machine, in whatever form and at whatever depth it stands."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddpm_hf.hub.public_files import public, public_files

SECRET = "hf_" + "a1B2" * 8

# What stands in a file -> what may be published of it.
TEXTS = {
    "/home/jane/run": "run",
    "/home/jane/My Pictures/cats": "cats",
    "~/run": "run",
    "~jane": "PATH",
    "~": "PATH",
    "/": "PATH",
    "../private/pictures": "pictures",
    "a/../../private": "private",
    "..": "PATH",
    "C:\\Users\\jane\\run": "run",
    "C:/Users/jane/run": "run",
    "\\\\server\\jane\\run": "run",
    "file:///home/jane/a.parquet": "a.parquet",
    "s3://jane:password@bucket/a": "a",
    "s3://jane:password@bucket": "bucket",
    "gs://bucket-of-jane/pictures/": "pictures",
    "https://jane:password@host.org/a?token=jane": "https://host.org/a",
    f"https://host.org/a?token={SECRET}": "https://host.org/a",
    "x --config /home/jane/a.yaml": "x --config a.yaml",
    "x --config=/home/jane/a.yaml": "x --config=a.yaml",
    "read ~/jane/a.yaml, then ../jane/b.yaml.": "read a.yaml, then b.yaml.",
    "[/home/jane/a, /home/jane/b]": "[a, b]",
    '{"path": "/home/jane/a"}': '{"path": "a"}',
    "D:\\jane\\a and D:\\jane\\b": "b",
    "at D:\\jane\\a": "at a",
    f"token {SECRET}": "token TOKEN",
    # What is no path, or no private one
    "runs/digits": "runs/digits",
    "me/ddpm-digits": "me/ddpm-digits",
    "https://huggingface.co/me/ddpm": "https://huggingface.co/me/ddpm",
    "images/s": "images/s",
    "1/2 or 3 / 4": "1/2 or 3 / 4",
    "train[:50%]": "train[:50%]",
    "a ~ b": "a ~ b",
    "v1..v2": "v1..v2",
    "Linux-6.1-x86_64": "Linux-6.1-x86_64",
    "ddpm_hf.models.unet_2d:UNet2DModel": "ddpm_hf.models.unet_2d:UNet2DModel",
    "torch 2.13.0+cpu": "torch 2.13.0+cpu",
    "50: 12:30": "50: 12:30",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_loses_what_is_private_and_no_more(text: str) -> None:
    assert public(text) == TEXTS[text]
    assert public(public(text)) == TEXTS[text]


@pytest.mark.parametrize(
    "command",
    [
        "train.py --config /home/jane/a.yaml --data.name='/home/jane/My Pictures/cats'",
        "train.py '--config=/home/jane/a b/a.yaml' --data.cache_dir ~jane/cats",
        "sh -c 'train.py --config /home/jane/a.yaml --data.name ../jane/cats'",
        "train.py --config /home/jane/it's a.yaml",
    ],
)
@pytest.mark.parametrize(
    "hide", [lambda c: {"command": c}, lambda c: {"history": [{"environment": {"command": [c, c]}}]}]
)
def test_commands_are_cut_at_any_depth(command: str, hide: Any) -> None:
    found = json.dumps(public(hide(command)))
    assert "jane" not in found
    assert "train.py" in found


def test_keys_tuples_and_lists_are_walked() -> None:
    assert public({"/home/jane/a": [("/home/jane/b", {"c": ["~/d", 1, None, True, 0.5]})]}) == {
        "a": [["b", {"c": ["d", 1, None, True, 0.5]}]]
    }


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.json").write_text("{}")
    for name, target in (("run/unet/readme.md", "key"), ("linked/unet", "elsewhere"), ("dangling/unet/a.json", "no")):
        link = tmp_path / name
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match=f"{link} is a symbolic link"):
            public_files(tmp_path / name.partition("/")[0], "unet/*")


def test_a_folder_behind_a_link_is_published(tmp_path: Path) -> None:
    """Checkpoints may lie on another disk: what counts is what lies in the folder itself."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.json").write_text("{}")
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert public_files(tmp_path / "run", "*").keys() == {"a.json"}


@pytest.mark.parametrize("name", ["a.json", "a.yaml"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"a: [", b"{]"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\); restore it"):
        public_files(tmp_path, "*")


def test_unfinished_lines_of_the_log_stay_here(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 2}\n{"st')
    assert public_files(tmp_path, "*")["metrics.jsonl"] == b'{"step": 1}\n{"step": 2}\n'


def test_a_run_with_everything_private_in_every_place(tmp_path: Path) -> None:
    private = {text: [text, {"a": (text, {text: text})}] for text in TEXTS if "jane" in text or SECRET in text}
    run = tmp_path / "run"
    (run / "unet").mkdir(parents=True)
    (run / "unet" / "config.json").write_text(json.dumps({"_name_or_path": "/home/jane/a", **private}))
    (run / "metrics.json").write_text(json.dumps({"history": [{"environment": {"command": [*private]}}], **private}))
    (run / "metrics.jsonl").write_text(json.dumps(private) + "\n")
    (run / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(private))))
    files = public_files(run, "**/*")
    assert len(files) == 4
    for name, content in files.items():
        assert isinstance(content, bytes)
        for secret in (b"jane", b"password", SECRET.encode()):
            assert secret not in content, (name, secret)
