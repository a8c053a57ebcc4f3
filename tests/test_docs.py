"""Links and paths in README.md and docs/ lead somewhere."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]
NAMED = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
PAGES = [*NAMED, *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "benchmarks|configs/accelerate|configs/train|ddpm_hf|docs|pipelines|tests"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_text_exist(page: Path) -> None:
    """Those of files in the repository, and the dotted names of modules, classes and functions."""
    # A diff of docs/extending.md names files that it adds.
    text = re.sub(r"^```diff.*?^```", "", page.read_text(), flags=re.M | re.S)
    paths = re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]+\.(?:py|yaml|md|json|diff))\b", text)
    assert not [path for path in paths if not (ROOT / path).exists()]
    for name in re.findall(r"\bddpm_hf(?:\.\w+)+", text):
        resolve_name(name)


def test_the_table_of_chapters_names_each_folder() -> None:
    chapters = {path.parent.name for path in (ROOT / "ddpm_hf").glob("*/__init__.py")} - {"assets"}
    rows = re.findall(r"^\| \[(\w+)/\]\(ddpm_hf/(\w+)\)", (ROOT / "README.md").read_text(), flags=re.M)
    assert {name for name, _ in rows} == chapters
    assert all(name == folder for name, folder in rows)


def test_no_help_begins_with_of() -> None:
    """The entry of an argument says what it is ("Type of the network"), and not of what alone ("Of the network")."""
    files = (ROOT / "ddpm_hf").rglob("*.py")
    assert not [(file.name, line) for file in files for line in re.findall(r"(?m)^ +\w+: [Oo]f .*", file.read_text())]
