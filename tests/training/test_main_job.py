"""The training script from end to end, made tiny: on one process, on two, and what it leaves behind."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_hf import DDIMScheduler
from ddpm_hf.data.batches import Batch, Batches
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.images import image_grid
from ddpm_hf.pipeline import DDPMCustomPipeline
from ddpm_hf.sampling.denoising import SamplingOptions, sample_images
from ddpm_hf.sampling.samplers import make_scheduler

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "train" / "digits.yaml"
STEPS, IMAGES, SAMPLER_STEPS = 6, 8, 3
TINY = [
    *("--threads", "1", "--model.block_out_channels", "[8,8]", "--model.norm_num_groups", "4"),
    *("--training.steps", str(STEPS), "--training.batch_size", "16", "--training.log_every", "1"),
    *("--training.warmup_steps", "2", "--evaluation.num_images", str(IMAGES)),
    *("--evaluation.num_inference_steps", str(SAMPLER_STEPS), "--evaluation.batch_size", "3"),
]


def launch(output_dir: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / "train_accelerate.py"), *TINY, "--output_dir", str(output_dir)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, *script]
    # Somewhere else, so that nothing depends on where it is started.
    result = subprocess.run(command, cwd=output_dir.parent, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return results


def weights_of(run: Path) -> bytes:
    return (run / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the launcher on one process: its folder, and what it printed."""
    run = tmp_path_factory.mktemp("one") / "run"
    return run, launch(run, "--config_file", str(ROOT / "configs/accelerate/cpu.yaml")).stdout


def test_one_process_prints_one_table_and_how_to_draw(one_process: tuple[Path, str]) -> None:
    run, printed = one_process
    results = results_of(run)
    scores = results["scores"]
    assert list(scores) == ["fid", "precision", "recall"]
    assert results["num_images"] == {"samples": IMAGES, "held_out": IMAGES}
    assert (results["errors"], results["extractor"], results["reference_images"]) == ({}, "digits", 1297)
    for name, entry in scores.items():
        assert entry["ratio"] == entry["samples"] / entry["held_out"]
        row = f"{entry['samples']:.4f} {entry['held_out']:.4f} {entry['ratio']:.4f}"
        assert [" ".join(line.split()) for line in printed.splitlines()].count(f"{name} {row}") == 1
    assert f'DDPMCustomPipeline.from_pretrained("{run}")' in printed
    assert "1 process(es) on cpu, 1 thread(s) each, 16 images per process and pass, 1 pass(es) per step" in printed


def test_the_folder_holds_the_images_that_were_scored(one_process: tuple[Path, str]) -> None:
    run, _ = one_process
    pipeline = DDPMCustomPipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    first = results_of(run)["first_image_seed"]
    sampler = yaml.safe_load((run / "config.yaml").read_text())["evaluation"]["sampler"]
    pipeline.scheduler = make_scheduler(pipeline.scheduler.config, sampler)
    seeds = range(first, first + IMAGES)
    images = pipeline(seeds=seeds, num_inference_steps=SAMPLER_STEPS, output_type="uint8").images
    with Image.open(run / "samples" / "grid.png") as picture:
        drawn = np.asarray(picture).astype(int)
    again = np.asarray(image_grid(images, scale=4)).astype(int)
    assert drawn.shape == again.shape
    assert np.abs(drawn - again).max() <= 1  # the batches were smaller, which changes the rounding


def test_the_run_says_where_its_figures_come_from(one_process: tuple[Path, str]) -> None:
    run, _ = one_process
    results = results_of(run)
    assert (results["seed"], results["steps"], results["num_images"]["samples"]) == (0, STEPS, IMAGES)
    assert results["environment"] == json.loads((run / "environment.json").read_text())
    assert results["environment"]["torch"] == version("torch")
    assert results["environment"]["threads_per_process"] == results["environment"]["processes"] == 1
    assert all(seconds > 0 for seconds in results["seconds"].values())
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["steps"] == STEPS
    assert [line["step"] for line in log_of(run)] == list(range(1, STEPS + 1))


def test_two_processes_train_as_one_does(one_process: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = launch(run, "--config_file", str(ROOT / "configs/accelerate/cpu_2_processes.yaml"))
    assert results_of(run)["environment"]["processes"] == 2
    assert result.stdout.count("precision ") == one_process[1].count("precision ")
    for one, two in zip(log_of(one_process[0]), log_of(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script's main in this process: arguments over the tiny ones -> the run's folder."""
    module = load_script()
    threads = torch.get_num_threads()

    def run(name: str, *arguments: str) -> Path:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        folder = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["train_accelerate.py", *TINY, "--output_dir", str(folder), *arguments])
        module.main()
        return folder

    yield run
    torch.set_num_threads(threads)
    datasets.enable_progress_bars()


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_accelerate", ROOT / "train_accelerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_seed_gives_the_same_bits_and_another_seed_others(train: Any) -> None:
    first = train("first", "--model.dropout", "0.2")
    torch.manual_seed(99)
    again, other = train("again", "--model.dropout", "0.2"), train("other", "--model.dropout", "0.2", "--seed", "1")
    assert weights_of(again) == weights_of(first) != weights_of(other)
    assert results_of(again)["scores"] == results_of(first)["scores"]
    assert (again / "samples" / "grid.png").read_bytes() == (first / "samples" / "grid.png").read_bytes()


def test_accumulation_gives_the_same_training(train: Any) -> None:
    whole, cut = train("whole"), train("cut", "--training.gradient_accumulation_steps", "4")
    for one, four in zip(log_of(whole), log_of(cut), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_training_lowers_the_loss_and_saves_the_average(train: Any) -> None:
    short = ("--training.steps", "60", "--training.log_every", "20", "--training.warmup_steps", "0")
    run = train("long", *short, "--training.ema_decay", "0.9")
    losses = [line["loss"] for line in log_of(run)]
    assert losses[-1] < 0.9 * losses[0]
    assert weights_of(run) != weights_of(train("last", *short, "--training.ema_decay", "0"))


def test_a_conditional_network_trains_on_labels_of_another_data_set(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_cached_images(DataConfig(split="test"))
    assert digits.labels is not None
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    content = {
        "image": [Image.fromarray(i[0].numpy()) for i in digits.images[:32]],
        "label": digits.labels[:32].tolist(),
    }
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "my.parquet")
    mine = [
        "--config",
        str(DIGITS),
        "--data.name",
        str(tmp_path / "my.parquet"),
        "--model.num_class_embeds",
        "10",
    ]
    run = train("mine", *mine, "--evaluation.extractor", "null")
    assert results_of(run)["scores"] == {}
    assert "No scores: " in capsys.readouterr().out
    run = train(
        "scored", *mine, "--evaluation.held_out_split", "null", "--evaluation.metrics", "[kid, precision_recall]"
    )
    assert {name: list(entry) for name, entry in results_of(run)["scores"].items()} == {
        "kid": ["samples"], "precision": ["samples"], "recall": ["samples"],
    }  # fmt: skip


def test_any_sampler_of_the_table_draws_the_images_that_are_scored(train: Any) -> None:
    few = ["--evaluation.extractor", "null", "--training.steps", "2", "--evaluation.num_inference_steps", "4"]
    run = train("dpm", *few, "--evaluation.sampler", "dpmsolver++")
    pipeline = DDPMCustomPipeline.from_pretrained(run)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    sampler = make_scheduler(pipeline.scheduler.config, "dpmsolver++")
    sampler.set_timesteps(4)
    images = sample_images(pipeline.unet, sampler, range(IMAGES), SamplingOptions(batch_size=3))
    with Image.open(run / "samples" / "grid.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(image_grid(images, scale=4)))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (
            ["--evaluation.num_images", "501"],
            2,
            "must be at most 500, the number of images of evaluation.held_out_split",
        ),
        (["--evaluation.num_images", "3"], 2, "fid, precision_recall need at least 4"),
        (["--evaluation.extractor", "vgg16"], 2, "curl --create-dirs -Lo"),
        (
            ["--evaluation.every", "2", "--evaluation.metrics", "[kid]"],
            2,
            "evaluation.best_by is fid and must be a score of evaluation.metrics (kid)",
        ),
        (["--evaluation.best_by", "fdi"], 2, "fdi"),
        (["--evaluation.metrics", "[accuracy]"], 2, "evaluation.metrics holds accuracy, which"),
        (["--config", str(DIGITS), "--data.name", "my.parquet"], 2, "my.parquet"),
        (["--evaluation.held_out_split", "no"], 2, "no"),
        (["--evaluation.num_inference_steps", "1001"], 2, "1001"),
        (["--evaluation.sampler", "ddim", "--evaluation.num_inference_steps", "1"], 2, "images are nearly clean"),
        (["--evaluation.eta", "1"], 2, "the sampler unipc has no evaluation.eta, and evaluation.eta is 1; make it 0"),
        (["--evaluation.sampler", "edm"], 2, "edm"),
        (["--training.gradient_accumulation_steps", "3"], 2, "use 15 or 18"),
        (["--diffusion.beta_schedule", "wavy"], 2, "wavy"),
        (["--model.down_block_types", "[DownBlock2D]"], 2, "block"),
        (["--data.split", "validation"], 2, "validation"),
    ],
)
def test_settings_that_do_not_work_leave_nothing(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        train("bad", *arguments)
    assert ended.value.code == status
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "bad").exists()


def break_batches(monkeypatch: pytest.MonkeyPatch, change: Callable[[Batch], Batch], steps: Collection[int]) -> None:
    """Change what the loop is given at some steps."""
    of_steps = Batches.of_steps

    def broken(self: Batches, first: int, stop: int) -> Iterator[tuple[int, list[Batch]]]:
        for step, batches in of_steps(self, first, stop):
            yield step, [change(batch) if step in steps else batch for batch in batches]

    monkeypatch.setattr(Batches, "of_steps", broken)


def test_steps_without_a_finite_gradient_are_skipped_counted_and_logged(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_batches(monkeypatch, lambda batch: replace(batch, x_0=batch.x_0 * math.inf), steps=(2, 3))
    run = train("some", "--training.max_skipped_steps", "2")
    assert [line["skipped_steps"] for line in log_of(run)] == [0, 0, 1, 1, 0, 0]
    assert [line["loss"] is None for line in log_of(run)] == [False, False, True, True, False, False]
    assert results_of(run)["skipped_steps"] == 2
    state = json.loads((run / "checkpoints" / f"step-{STEPS}" / "training" / "state.json").read_text())
    assert state["ema_updates"] == STEPS - 2


@pytest.mark.parametrize("first", [0, STEPS - 1])
def test_a_run_whose_last_steps_trained_nothing_is_no_success(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    break_batches(monkeypatch, lambda batch: replace(batch, x_0=batch.x_0 * math.inf), range(first, STEPS))
    with pytest.raises(SystemExit) as ended:
        train("some", "--training.max_skipped_steps", str(STEPS))
    assert ended.value.code == 1
    assert f"not finite at the last {STEPS - first} of {STEPS} steps" in capsys.readouterr().err
    assert results_of(tmp_path / "some")["skipped_steps"] == STEPS - first


def test_too_many_skipped_steps_end_the_run_and_keep_the_last_good_checkpoint(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_batches(monkeypatch, lambda batch: replace(batch, noise=batch.noise * math.nan), range(2, STEPS))
    with pytest.raises(SystemExit) as ended:
        train("bad", "--training.max_skipped_steps", "2", "--training.checkpoint_every", "1")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    kept = tmp_path / "bad" / "checkpoints" / "step-2"
    assert "the gradient was not finite at steps 3 to 5, and none of them was taken" in said
    assert f"the last good checkpoint is {kept}" in said
    assert {path.name for path in kept.parent.iterdir()} == {"step-1", "step-2"}


def test_the_best_weights_and_the_grids_on_the_way_are_kept(train: Any) -> None:
    run = train("scored", "--evaluation.every", "2", "--training.sample_every", "3", "--evaluation.grid_images", "5")
    rounds = [line for line in log_of(run) if "fid" in line]
    assert [line["step"] for line in rounds] == [2, 4, 6]
    best = min(rounds, key=lambda line: line["fid"])
    assert json.loads((run / "best" / "metrics.json").read_text()) == best == results_of(run)["best"]
    assert DDPMCustomPipeline.from_pretrained(run / "best").unet.config.block_out_channels == [8, 8]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "fid.png",
        "grid.png",
        "nearest.png",
        "step-00000003.png",
        "step-00000006.png",
    ]


def test_the_best_weights_may_be_those_of_the_highest_score(train: Any) -> None:
    by = ["--evaluation.metrics", "[precision_recall]", "--evaluation.best_by", "recall"]
    run = train("scored", "--evaluation.every", "2", *by)
    rounds = [line for line in log_of(run) if "recall" in line]
    best = max(rounds, key=lambda line: line["recall"])
    assert min(rounds, key=lambda line: line["recall"]) != best
    assert json.loads((run / "best" / "metrics.json").read_text()) == best == results_of(run)["best"]
    assert {path.name for path in (run / "samples").iterdir()} == {"recall.png", "grid.png", "nearest.png"}


def test_metrics_and_grids_go_to_a_tracker(train: Any) -> None:
    run = train("tracked", "--training.trackers", "[tensorboard]", "--training.sample_every", "3")
    events = EventAccumulator(str(next(path.parent for path in run.rglob("events.*") if "hparams" not in str(path))))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [round(scalar.value, 5) for scalar in events.Scalars("loss")] == [round(x["loss"], 5) for x in log_of(run)]
    assert [image.step for image in events.Images("samples")] == [3, 6]


def test_a_dry_run_says_what_the_full_one_costs_and_leaves_nothing(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--training.steps", "1000", "--training.checkpoint_every", "300"]
    train("dry", "--dry_run", *steps, "--training.ema_sigma_rels", "[0.1]")
    printed = capsys.readouterr().out
    assert "1000 steps of " in printed
    assert "4 checkpoint(s) of " in printed
    assert "3 kept" in printed
    assert "; 32 snapshots of averages, " in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--training.compile", "true"], marks=pytest.mark.slow),
        ["--training.channels_last", "true", "--training.gradient_checkpointing", "true", "--training.tf32", "true"],
    ],
)
def test_what_makes_a_step_faster_or_smaller_means_the_same(train: Any, arguments: list[str]) -> None:
    plain, other = train("plain"), train("other", *arguments)
    torch.set_float32_matmul_precision("highest")
    for one, two in zip(log_of(plain), log_of(other), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
