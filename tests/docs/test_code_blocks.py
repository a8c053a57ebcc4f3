"""Each block of Python in the pages runs as it stands, one after the other, where it needs no network and no hours."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.cli import pushing
from ddpm_hf.cli.push import PushConfig
from tests.docs.pages import PAGES, ROOT, blocks_of, name_of
from tests.docs.stand_ins import fill, make_small
from tests.hub_clients import Clients

NOT_RUN = {"README.md": 1}
"""How many blocks of a page are not run. Each says why in a comment above it."""
OF_THE_HUB = "docs/hub.md"
WITH_PYTHON = [page for page in PAGES if any(blocks_of(page, "python")) and name_of(page) != OF_THE_HUB]
OF_ANY_MODEL = {"augmentation.png": 1, "process-noising.png": 2, "process-levels.png": 13}
"""Pictures that no model is needed for, and how far their pixels may be from the committed ones on average: fonts
differ between versions of the libraries that draw them."""


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    make_small(monkeypatch, tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(page, "python"):
        if block.not_run is None:
            # Empty lines before it, so that a traceback has the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
    for made in tmp_path.glob("*.png"):
        kept = ROOT / "docs" / made.name
        if kept.exists() and kept.name != "digit.png":
            found, expected = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (made, kept))
            assert found.shape == expected.shape, made.name
            assert np.abs(found - expected).mean() <= OF_ANY_MODEL.get(made.name, 255), made.name


def test_the_pages_show_all_pictures_that_their_code_makes() -> None:
    code = {page: "".join(block.code for block in blocks_of(page, "python")) for page in PAGES}
    shown = {picture: page for page in PAGES for picture in OF_ANY_MODEL if f'"{picture}"' in code[page]}
    assert shown.keys() == OF_ANY_MODEL.keys()
    assert all(f"]({picture})" in page.read_text() for picture, page in shown.items())


def test_few_blocks_are_not_run() -> None:
    skipped = {name_of(page): sum(block.not_run is not None for block in blocks_of(page, "python")) for page in PAGES}
    assert {name: count for name, count in skipped.items() if count} == NOT_RUN


def push_and_run(folder: str, page: str) -> bool:
    """In a process that sees a test's Hub: the model that a page speaks of goes there, and its code runs."""
    pushing.run(PushConfig(Path(folder) / "runs" / "digits", "me/ddpm-digits"))
    names: dict[str, Any] = {}
    for block in blocks_of(Path(page), "python"):
        exec(compile(block.code, page, "exec"), names)
    return True


def test_the_python_of_the_page_of_the_hub_runs(clients: Clients, tmp_path: Path) -> None:
    fill(tmp_path)
    unet = tmp_path / "runs" / "digits" / "unet"
    kept = unet / "diffusion_pytorch_model.ema0_999.safetensors"
    kept.write_bytes((unet / "diffusion_pytorch_model.safetensors").read_bytes())
    assert clients.result(push_and_run, str(tmp_path), str(ROOT / OF_THE_HUB), HF_TOKEN="hf_me")
