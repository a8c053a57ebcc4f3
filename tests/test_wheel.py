"""The sdist and the wheel, built, installed into an environment of its own, and used far from any checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

TINY = [
    *("--threads", "1", "--model.block_out_channels", "[8,8]", "--model.norm_num_groups", "4"),
    *("--training.steps", "2", "--training.batch_size", "16", "--evaluation.num_images", "8"),
    *("--evaluation.num_inference_steps", "3"),
]
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the sdist holds, and the sdist from a copy of the checkout's files."""
    folder = tmp_path_factory.mktemp("build")
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in listed.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "checkout" / name)
    build(folder / "checkout", "build_sdist", folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    build(folder / sdist.name.removesuffix(".tar.gz"), "build_wheel", folder)
    [built] = folder.glob("*.whl")
    return built


def build(source: Path, what: str, into: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BUILD, what, str(into)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment that has the wheel, and the libraries of this one but for this package."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    # A path in a .pth file gives its packages, but not what its own .pth files add, as an editable install does.
    where = f"import sysconfig; print(sysconfig.get_path('purelib', vars={{'base': {str(place)!r}}}))"
    own = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("far away")


def run(home: Path, *command: str | Path) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=home, env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_script_recipes_launcher_files_and_pipelines(wheel: Path) -> None:
    held = set(ZipFile(wheel).namelist())
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "pipelines").glob("*.py"), *(ROOT / "ddpm_hf").rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    expected = {name if name.startswith("ddpm_hf/") else f"ddpm_hf/{name}" for name in names}
    assert expected | {"train_accelerate.py"} <= held
    assert not [name for name in held if name.startswith("tests/")]


def test_the_wheel_trains_draws_and_scores(commands: Path, home: Path) -> None:
    where = run(home, commands / "python", "-c", "import ddpm_hf; print(ddpm_hf.__file__)").strip()
    assert Path(where).is_relative_to(commands.parent)
    assert run(home, commands / "ddpm-hf-train", "--config", "cifar10", "--print_config").startswith("output_dir")
    run(home, commands / "ddpm-hf-train", *TINY, "--output_dir", "by-command")
    named = "ddpm_hf.DDPMCustomPipeline.from_pretrained('by-command', custom_pipeline='repaint')"
    assert "RePaintPipeline" in run(home, commands / "python", "-c", f"import ddpm_hf; print(type({named}))")
    drawing = ["--model", "by-command", "--num_images", "8", "--num_inference_steps", "3", "--output", "samples"]
    run(home, commands / "ddpm-hf-sample", *drawing)
    scoring = ["--samples", "samples", "--reference", "digits", "--extractor", "digits", "--output", "scores"]
    run(home, commands / "ddpm-hf-evaluate", *scoring, "--bootstrap", "0")
    assert set(json.loads((home / "scores" / "metrics.json").read_text())["scores"]) == {"fid", "precision", "recall"}


def test_accelerate_trains_the_same_from_the_module(commands: Path, home: Path) -> None:
    """As the command does with a launcher file by its name: on two processes, from one seed, to the same weights."""
    launch = [commands / "python", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    port = ["--main_process_port", "0"]
    run(home, *launch, *port, "-m", "ddpm_hf.cli.train", *TINY, "--output_dir", "by-module")
    run(home, commands / "ddpm-hf-train", "--launcher", "cpu_2_processes", *TINY, "--output_dir", "by-launcher")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (home / "by-module" / weights).read_bytes() == (home / "by-launcher" / weights).read_bytes()
