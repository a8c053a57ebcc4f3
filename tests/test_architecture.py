"""Imports point one way: a module may import those to its left in docs, and nothing above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddpm_hf"

# module -> what it may import of this package, directly. Scripts, pipelines and tests stand on top.
ALLOWED: dict[str, set[str]] = {
    "noise_schedules": set(),
    "time_grids": set(),
    "images": set(),
    "ema": set(),
    "fused": set(),
    "unet_blocks": {"fused"},
    "diffusion": {"noise_schedules"},
    "variational": {"diffusion"},
    "losses": {"diffusion", "variational"},
    "likelihood": {"data", "diffusion", "variational"},
    "timestep_sampling": set(),
    "schedulers": {"diffusion", "noise_schedules", "time_grids"},
    "unet_config": {"unet_blocks"},
    "unet": {"fused", "unet_blocks", "unet_config"},
    "sampling": {"images", "schedulers", "unet"},
    "public_files": set(),
    "hub": {"public_files"},
    "model_card": set(),
    "pictures": {"images", "sampling"},
    "pipeline": {"hub", "images", "model_card", "public_files", "sampling", "schedulers", "unet"},
    "config": set(),
    "data": {"config", "images", "image_cache", "streaming"},
    "image_cache": {"images"},
    "streaming": {"image_cache"},
    "metrics": {"images", "metrics"},
    "command_line": {"config", "schedulers", "unet"},
    "launch": set(),
    "batches": {"data", "images", "timestep_sampling"},
    "metrics_log": set(),
    "checkpoints": {"ema", "pipeline", "timestep_sampling", "unet"},
    "publish": {"checkpoints", "hub", "model_card", "public_files"},
    "evaluation": {"config", "data", "images", "metrics", "sampling", "schedulers", "unet"},
    "training": {"config", "data", "losses", "schedulers", "unet"},
    "run": {
        *("batches", "checkpoints", "config", "data", "ema", "evaluation", "figures", "hub", "images", "launch"),
        *("manifest", "metrics_log", "publish", "schedulers", "timestep_sampling", "training", "unet"),
    },
    "figures": set(),
    "manifest": set(),
    "results": {"images", "metrics"},
    "sample_files": {"images"},
    "bridges": {"manifest", "noise_schedules", "pipeline", "schedulers", "unet"},
    "cli": {
        *("bridges", "command_line", "config", "data", "figures", "hub", "images", "launch", "likelihood", "manifest"),
        *("metrics", "model_card", "pictures", "pipeline", "publish", "results", "sample_files", "sampling"),
        "schedulers",
    },
    "toy": {"command_line", "diffusion", "losses", "noise_schedules", "schedulers", "toy_pictures"},
    "toy_pictures": set(),
    "dry_run": {"config", "metrics_log"},
    "assets": {"config", "data", "images", "metrics"},
    "__init__": {"diffusion", "pipeline", "schedulers", "unet"},
}
NAMES_OF_MODULES = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """The first names below the package that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith("ddpm_hf.")}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_one_way(module: Path) -> None:
    name = module.parts[0].removesuffix(".py")
    assert name in ALLOWED, f"{module} is new: say here what it may import"
    assert imports_of(PACKAGE / module) <= ALLOWED[name] | ({name} if len(module.parts) > 1 else set())


def test_the_arrows_have_no_circle() -> None:
    open_names = dict(ALLOWED)
    while open_names:
        free = [name for name, needs in open_names.items() if not (needs - {name}) & open_names.keys()]
        assert free, f"a circle among {sorted(open_names)}"
        for name in free:
            del open_names[name]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_files_stay_small(module: Path) -> None:
    assert len((PACKAGE / module).read_text().splitlines()) <= 420


def test_the_package_loads_no_library_that_diffusers_classes_do_not() -> None:
    """Which keeps `import ddpm_hf` quick, and its import of the heavy ones where they are used."""
    loaded = [
        set(subprocess.check_output([sys.executable, "-c", f"{line}; {NAMES_OF_MODULES}"], text=True).split())
        for line in (
            "import ddpm_hf",
            "from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel",
        )
    ]
    assert "torch" in loaded[0]
    assert not loaded[0] & {"datasets", "jsonargparse", "matplotlib", "pandas", "torchmetrics"}
    assert loaded[0] - loaded[1] <= {"ddpm_hf", *sys.stdlib_module_names}, "import these inside what needs them"
