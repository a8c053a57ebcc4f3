"""What setup.cfg says of the package: versions, extras, and what else repeats them."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ddpm_hf

ROOT = Path(__file__).parents[1]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
LOWEST = dict(
    line.split("==") for line in (ROOT / "constraints" / "lowest.txt").read_text().splitlines() if "==" in line
)


def requirements(text: str) -> dict[str, Requirement]:
    found = [Requirement(line) for line in text.splitlines() if line]
    return {one.name: one for one in found}


def lowest_of(requirement: Requirement) -> Version:
    [bound] = [one.version for one in requirement.specifier if one.operator == ">="]
    return Version(bound)


@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_versions_are_those_that_the_tests_pass_with(name: str) -> None:
    extras = SETUP["options.extras_require"]
    required = requirements(SETUP["options"]["install_requires"]) | requirements(extras["dino"])
    assert lowest_of(required[name]) == Version(LOWEST[name])


def test_each_library_but_torch_has_a_lowest_version() -> None:
    assert {*requirements(SETUP["options"]["install_requires"]), "transformers"} - {"torch"} == LOWEST.keys()


def test_the_extra_all_has_what_a_user_may_want() -> None:
    extras = set(SETUP["options.extras_require"]) - {"all", "dev", "docs", "test"}
    [everything] = requirements(SETUP["options.extras_require"]["all"]).values()
    assert everything.extras == extras


def test_the_version_stands_in_each_place() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == ddpm_hf.__version__
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert newest is not None
    assert newest[1] == ddpm_hf.__version__


def test_each_command_has_a_module() -> None:
    """And each module of `cli` that begins a command is one."""
    commands = dict(
        re.split(r"\s*=\s*", line) for line in SETUP["options.entry_points"]["console_scripts"].splitlines() if line
    )
    assert all(module == f"ddpm_hf.cli.{name.removeprefix('ddpm-hf-')}:main" for name, module in commands.items())
    modules = {path.stem for path in (ROOT / "ddpm_hf" / "cli").glob("*.py") if "\ndef main()" in path.read_text()}
    assert {name.removeprefix("ddpm-hf-") for name in commands} == modules


def test_each_package_is_installed() -> None:
    """The list is written by hand, and a new chapter is easily left out of the wheel."""
    listed = set(SETUP["options"]["packages"].split()) - {"ddpm_hf.configs", "ddpm_hf.pipelines"}
    there = {path.parent.relative_to(ROOT) for path in (ROOT / "ddpm_hf").rglob("__init__.py")}
    assert {".".join(path.parts) for path in there} == listed


def test_the_workflow_runs_all_that_a_change_must_pass() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    steps = [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert "bash .ci/run" in steps
    oldest = SETUP["options"]["python_requires"].removeprefix(">=")
    assert oldest in jobs["everything"]["strategy"]["matrix"]["python"]
