"""The house: which chapter may import which, how large files and signatures get, and what `import ddpm_hf` costs.

A room is a package below `ddpm_hf`, or a module at its root. Scripts, pipelines, benchmarks and tests stand on top.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddpm_hf"
MAX_ARROWS = 140
MAX_LINES = 420
MAX_PARAMETERS = 7

# Room -> the rooms that it imports, from the bottom of the house to its top: a row names only rooms above it in this
# table. Each arrow is drawn by some file; one that nobody draws any more has to go.
ALLOWED: dict[str, set[str]] = {
    "files": set(),
    "pixels": set(),
    "images": {"files", "pixels"},
    "signals": set(),
    "progress": set(),
    "transfers": set(),
    "launch": {"progress", "signals", "transfers"},
    "lock": {"files", "launch"},
    "http_client": set(),
    "recipes": set(),
    "settings": set(),
    "randomness": {"settings"},
    "manifest": {"files"},
    "diffusion": set(),
    "schedulers": {"diffusion", "settings"},
    "models": {"files", "settings"},
    "unet": {"models"},
    "model_folder": {"files"},
    "sampling": {"diffusion", "files", "images", "launch", "pixels", "randomness", "schedulers", "settings"},
    "metrics": {
        *("diffusion", "files", "http_client", "images", "launch", "pixels", "progress", "randomness", "settings"),
    },
    "hub": {"files", "http_client", "metrics"},  # of metrics, the names of scores
    "pipeline_index": {"files", "models", "schedulers"},
    "pipeline": {
        *("files", "hub", "images", "model_folder", "models", "pipeline_index", "pixels", "randomness", "recipes"),
        *("sampling", "schedulers", "settings"),
    },
    "data": {"diffusion", "files", "launch", "pixels", "progress", "randomness", "settings", "transfers"},
    "assets": {"data", "images", "metrics"},
    "conversion": {"diffusion", "files", "manifest", "model_folder", "models", "pipeline", "schedulers"},
    "training": {
        *("data", "diffusion", "files", "http_client", "hub", "images", "launch", "lock", "manifest", "metrics"),
        *("model_folder", "models", "pipeline", "pixels", "progress", "randomness", "sampling", "schedulers"),
        "settings",
    },
    "command_line": {"progress", "recipes", "settings", "training"},
    "notebook": {"command_line", "pipeline", "recipes", "training"},
    "__init__": {"diffusion", "models", "notebook", "pipeline", "schedulers"},
    "toy": {"command_line", "diffusion", "progress", "sampling", "schedulers", "settings"},
    "demo": {
        *("command_line", "data", "diffusion", "files", "hub", "images", "launch", "metrics", "pipeline", "pixels"),
        *("randomness", "recipes", "sampling", "settings", "training"),
    },
    "cli": {
        *("command_line", "conversion", "data", "demo", "files", "hub", "images", "launch", "lock", "manifest"),
        *("metrics", "pipeline", "pixels", "progress", "recipes", "sampling", "settings", "signals", "training"),
    },
}

# Functions whose parameters diffusers' interface dictates: its configs are flat, and a call takes each by its name.
DICTATED_BY_DIFFUSERS = {
    "models/noisy_classifier.py: NoisyClassifier.__init__",
    "models/unet_2d.py: UNet2DModel.__init__",
    "pipeline.py: DDPMCustomPipeline.__call__",
    "schedulers/adams.py: AdamsScheduler.__init__",
    "schedulers/ddim.py: DDIMScheduler.__init__",
    "schedulers/ddim.py: DDIMScheduler.step",
    "schedulers/ddpm.py: DDPMScheduler.__init__",
}

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
TREES = {module: ast.parse((PACKAGE / module).read_text()) for module in MODULES}
LIST_LIBRARIES = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"


def room_of(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


def imports_of(module: Path) -> set[str]:
    """The rooms that a file imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ddpm_hf.")} - {room_of(module), "__version__"}


def arrows() -> dict[str, set[str]]:
    drawn: dict[str, set[str]] = {}
    for module in MODULES:
        drawn.setdefault(room_of(module), set()).update(imports_of(module))
    return drawn


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_what_its_room_may(module: Path) -> None:
    room = room_of(module)
    assert room in ALLOWED, f"{module} is a new room: say in ALLOWED what it may import"
    assert imports_of(module) <= ALLOWED[room]


def test_each_permitted_arrow_is_drawn() -> None:
    drawn = arrows()
    unused = {room: needs - drawn.get(room, set()) for room, needs in ALLOWED.items()}
    assert not {room: needs for room, needs in unused.items() if needs}
    assert drawn.keys() == ALLOWED.keys()


def test_no_arrow_points_upwards() -> None:
    """And so there is no circle."""
    rooms = list(ALLOWED)
    upwards = [(room, need) for i, room in enumerate(rooms) for need in ALLOWED[room] if need not in rooms[:i]]
    assert not upwards, "move the row, or the code"


def test_the_rooms_know_few_others() -> None:
    assert sum(map(len, arrows().values())) <= MAX_ARROWS


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_files_stay_small(module: Path) -> None:
    assert len((PACKAGE / module).read_text().splitlines()) <= MAX_LINES


def parameters_of(tree: ast.AST, prefix: str = "") -> dict[str, int]:
    """Qualified name -> number of parameters besides self and cls, for each function and each method."""
    found: dict[str, int] = {}
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.ClassDef):
            name = f"{prefix}{node.name}."
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            args = node.args
            named = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
            found[f"{prefix}{node.name}"] = len([arg for arg in named if arg not in ("self", "cls")])
            name = f"{prefix}{node.name}."
        found |= parameters_of(node, name)
    return found


def test_settings_are_handed_on_as_objects() -> None:
    """Rather than one by one: no signature is long, but for those that diffusers dictates."""
    long = {
        f"{module.as_posix()}: {name}"
        for module, tree in TREES.items()
        for name, count in parameters_of(tree).items()
        if count > MAX_PARAMETERS
    }
    assert long == DICTATED_BY_DIFFUSERS


def loaded_by(line: str) -> set[str]:
    """The top-level modules in memory after a line in a new process."""
    return set(subprocess.check_output([sys.executable, "-c", f"{line}; {LIST_LIBRARIES}"], text=True).split())


def test_the_package_alone_loads_no_library() -> None:
    """Names are loaded when they are used, so that a command answers at once where it needs none."""
    assert loaded_by("import ddpm_hf") - loaded_by("pass") <= {"ddpm_hf", *sys.stdlib_module_names}


def test_the_public_names_load_no_library_that_diffusers_classes_do_not() -> None:
    """Which keeps them quick, and the import of other heavy libraries where they are used."""
    ours = loaded_by("from ddpm_hf import *")
    theirs = loaded_by("from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel")
    assert "torch" in ours
    heavy = {"datasets", "jsonargparse", "matplotlib", "pandas", "torchmetrics"}
    assert not ours & heavy - theirs  # older diffusers load pandas
    # xxhash is one small extension module.
    assert ours - theirs <= {"ddpm_hf", "xxhash", *sys.stdlib_module_names}, "import these inside what needs them"
