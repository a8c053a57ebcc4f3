"""The site: MkDocs builds it without a warning, with every page, and no page lies outside of it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
NAV = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]


def test_the_navigation_names_each_page_once() -> None:
    named = re.findall(r"([\w/]+\.md)$", NAV, flags=re.M)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_reference_has_what_the_package_and_the_metrics_export() -> None:
    import ddpm_hf
    from ddpm_hf import metrics

    shown = re.findall(r"^::: ([\w.]+)$", "".join(page.read_text() for page in DOCS.rglob("*.md")), flags=re.M)
    assert len(shown) == len(set(shown))
    for module in (ddpm_hf, metrics):
        for name in set(module.__all__) - {"__version__"}:
            home = getattr(module, name).__module__
            assert {home, f"{home}.{name}"} & {*shown}, name


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs pip install 'ddpm-hf[docs]'")
def test_mkdocs_builds_it_without_a_warning(tmp_path: Path) -> None:
    # Not --quiet, which hides warnings from --strict too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("")
        assert (tmp_path / (place.parent if place.name == "index" else place) / "index.html").is_file(), page
    html = {file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.rglob("*.html")}
    # Nothing is loaded from elsewhere, and no link goes to a file that the site does not have.
    assert not [file for file, text in html.items() if re.search(r"<(script|link)[^>]*(src|href)=.https?:", text)]
    assert not [file for file, text in html.items() if re.search(r"href=.[./]*(ddpm_hf|tests|configs)/", text)]
    for file, text in html.items():
        if file.startswith("reference/"):
            explained = re.sub(r"<details class=.mkdocstrings-source.*?</details>", "", text, flags=re.S)
            assert "<blockquote" not in explained, f"{file}: >>> outside of a section Examples"
            assert not re.findall(r":(?:math|class|func|meth|mod|data):.{20}|\.\. math", explained), file
    assert "{metrics}" not in html["reference/settings/index.html"]
    assert "<math" in html["reference/diffusion/index.html"]
