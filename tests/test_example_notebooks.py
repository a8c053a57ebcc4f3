"""The notebooks: kept without outputs, opened by a badge, and each runs from its first cell to its last, in small."""

import configparser
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL: dict[str, dict[str, Any]] = {
    "digits": {"STEPS": 3, "SAMPLES": 20, "COMPARED": 20},
    "your_images": {
        "THREADS": 1,
        "SETTINGS": {
            "data": {"resolution": 16},
            "training": {"steps": 8, "batch_size": 4, "sample_every": 4},
            "evaluation": {"num_images": 4, "grid_images": 4, "num_inference_steps": 4},
        },
    },
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def parameters_of(notebook: Any) -> list[int]:
    """Where the cell of parameters is, by papermill's tag."""
    return [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]


def test_each_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_what_it_has_put_out(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert not [cell.id for cell in notebook.cells if cell.metadata.keys() - {"tags"}]
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert len(parameters_of(notebook)) == 1
    [parameters] = (notebook.cells[i].source for i in parameters_of(notebook))
    assert SMALL[path.stem].keys() <= set(re.findall(r"^(\w+) =", parameters, flags=re.M))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_badge_opens_the_notebook_where_the_repository_is_known(path: Path) -> None:
    """The day that setup.cfg names a repository on GitHub, the badge must lead to the notebook there."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = re.search(r"https://github\.com/([\w.-]+/[\w.-]+)", setup["metadata"]["project_urls"])
    place = f"github/{found[1]}/blob/main/notebooks/{path.name}" if found else ""
    assert f"colab-badge.svg)](https://colab.research.google.com/{place})" in read(path).cells[0].source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read(path)
    [place] = parameters_of(notebook)
    small = "\n".join(f"{name} = {value!r}" for name, value in SMALL[path.stem].items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(small))  # type: ignore[no-untyped-call]
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # a cell that fails raises, with its traceback
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 6
