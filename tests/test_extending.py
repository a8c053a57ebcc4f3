"""The patches of docs/extending.md apply to the package as it is, and what they add works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
PATCHES = sorted((ROOT / "docs" / "extending").glob("*.diff"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Name of each patch -> what failed, from a process that runs a copy of the package with all of them."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("ddpm_hf", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_accelerate.py", copy)
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}  # git leaves a repository around it alone
    for patch in PATCHES:
        subprocess.run(["git", "apply", str(patch)], cwd=copy, env=outside, check=True)
    script = ROOT / "tests" / "scripts" / "extending.py"
    variables = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], cwd=copy, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_the_extension_works(patch: Path, results: dict[str, str | None]) -> None:
    assert results[patch.stem] is None, results[patch.stem]


def test_the_page_shows_the_patches() -> None:
    blocks = re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    assert sorted(blocks) == sorted(patch.read_text() for patch in PATCHES)
