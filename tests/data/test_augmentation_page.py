"""The picture of docs/augmentation.md is what its code makes."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


def test_the_picture_is_made_by_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"^```python\n(.*?)^```$", (DOCS / "augmentation.md").read_text(), flags=re.M | re.S)
    assert len(code) == 1
    monkeypatch.chdir(tmp_path)
    exec(code[0], {})
    found, kept = (np.asarray(Image.open(folder / "augmentation.png")).astype(int) for folder in (tmp_path, DOCS))
    assert np.abs(found - kept).max() <= 1
