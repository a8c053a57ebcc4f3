"""ddpm-hf-ema: from a run's snapshots to the pipeline of an average, and to the best of several."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.cli import ema
from ddpm_hf.manifest import weights_hash
from ddpm_hf.training.snapshots import average_of, snapshots_in
from tests.runs import Started, finished

WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
KEEPING = ["--training.ema_sigma_rels", "[0.05,0.1]", "--training.steps", 40, "--training.learning_rate", "0.01"]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("ema") / "run", *KEEPING, "--evaluation.num_images", 80)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy for the test to write into."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["ddpm-hf-ema", *map(str, words), "--threads", "1", "--quiet"])
    ema.main()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def average(run: Path, length: float) -> dict[str, Tensor]:
    return average_of(snapshots_in(run / "averages"), length).tensors()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_an_average_becomes_a_pipeline_with_its_manifest(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, run, "--sigma_rel", 0.07)
    output = run / "averages" / "sigma_rel-0.07"
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: the average of sigma_rel 0.07 at step 40, of 20 snapshots; its profile is wrong")
    assert_same(load_file(output / WEIGHTS), average(run, 0.07))
    assert diffusers.DDPMPipeline.from_pretrained(output).unet.config.sample_size == 8
    pipe = DDPMCustomPipeline.from_pretrained(output)
    settings = read(output / "manifest.json")["settings"]
    assert settings["weights_sha256"] == weights_hash(pipe.unet)
    assert settings["snapshots"].keys() == {f"step-{step}.safetensors" for step in range(2, 41, 2)}
    assert settings["profile_error"] < 0.01
    assert pipe.scheduler.config == DDPMCustomPipeline.from_pretrained(run).scheduler.config
    call(monkeypatch, run, "--sigma_rel", 0.07)  # the same again is no trouble
    said = refusal(monkeypatch, capsys, run, "--sigma_rel", 0.08, "--output", output)
    assert f"{output} holds results of other settings (profile_error" in said
    assert_same(load_file(output / WEIGHTS), average(run, 0.07))


def test_a_scan_scores_as_the_run_does_and_writes_the_best(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, run, "--scan", "fid", "--sigma_rel", "[0.1,0.05,0.2]")
    output = run / "averages" / "scan-fid"
    found, of_run = read(output / "metrics.json"), read(run / "metrics.json")
    scores = found["scores"]["fid"]
    assert list(scores)[:4] == ["ema_decay 0.998", "sigma_rel 0.05", "sigma_rel 0.1", "sigma_rel 0.2"]
    for name, of in found["scores"].items():
        assert of["ema_decay 0.998"] == of_run["scores"][name]["samples"]
        assert of["held_out"] == of_run["scores"][name]["held_out"]
    assert scores["sigma_rel 0.05"] != scores["sigma_rel 0.2"] != scores["ema_decay 0.998"]
    lengths = (0.05, 0.1, 0.2)
    assert found["best"] == min(lengths, key=lambda length: scores[f"sigma_rel {length}"])
    assert_same(load_file(output / WEIGHTS), average(run, found["best"]))
    for length in lengths:
        pipe = DDPMCustomPipeline.from_pretrained(output)
        pipe.unet.load_state_dict(average(run, length))
        assert found["weights_sha256"][f"sigma_rel {length}"] == weights_hash(pipe.unet)
    assert Image.open(output / "scan.png").size == (720, 480)
    said, table = capsys.readouterr().out, (output / "table.md").read_text()
    assert table in said
    assert table.count("\n") == 7
    assert f"The best fid, {min(scores[f'sigma_rel {length}'] for length in lengths):.4g}, is that of" in said
    settings = read(output / "manifest.json")["settings"]
    assert settings.items() <= found.items()
    assert settings["evaluation"]["num_images"] == 80


def test_a_scan_of_another_score_and_number_of_images(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The highest recall is the best; and without a list there are the usual lengths, as far as they can be had."""
    for path in (run / "averages").iterdir():
        if path.name not in {f"step-{step}.safetensors" for step in (8, 16, 24, 32, 40)}:
            path.unlink()
    call(monkeypatch, run, "--scan", "recall", "--num_images", 12, "--output", run / "elsewhere")
    found = read(run / "elsewhere" / "metrics.json")
    recalls = found["scores"]["recall"]
    assert recalls[f"sigma_rel {found['best']:g}"] == max(
        value for name, value in recalls.items() if name.startswith("sigma_rel")
    )
    assert found["num_images"]["sigma_rel 0.1"] == 12
    assert found["sigma_rels"] == [0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15]
    assert (
        "Note: the snapshots give averages of sigma_rel from 0.035 to 0.16, and no others." in capsys.readouterr().out
    )


def test_a_run_that_is_not_finished_has_its_newest_checkpoint_beside(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "model_index.json").unlink()
    call(monkeypatch, run, "--scan", "fid", "--sigma_rel", "0.1", "--num_images", 8)
    assert "ema_decay 0.998 at step 40" in read(run / "averages" / "scan-fid" / "metrics.json")["scores"]["fid"]


def test_two_processes_scan_as_one_does(run: Path, tmp_path: Path) -> None:
    words = [run, "--scan", "fid", "--sigma_rel", "[0.05,0.1]", "--threads", 1, "--quiet"]
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        started = Started(words, output, processes, main=ema.main)
        assert started.wait() == [0] * processes, started.said()
        assert started.said().count("The best fid") == 1
        found.append((read(output / "metrics.json")["scores"], (output / WEIGHTS).read_bytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "sigma_rel is null and must be one length, such as 0.05; give that, or --scan fid to try several"),
        (["--sigma_rel", "[0.05,0.1]"], "sigma_rel is [0.05, 0.1] and must be one length"),
        (["--sigma_rel", "0.3"], "sigma_rel is 0.3 and must be from 0.001 to 0.28"),
        (["--sigma_rel", "[0.1,0.1]", "--scan", "fid"], "sigma_rel is [0.1, 0.1] and must be different lengths"),
        (["--sigma_rel", "[]", "--scan", "fid"], "sigma_rel is [] and must be one length or several"),
        (["--sigma_rel", "0.1", "--num_images", "9"], "num_images is 9 and must be null, as images are drawn for a"),
        (["--scan", "beauty"], "scan was given 'beauty' and takes one of"),
        (["--scan", "kid"], "scan is kid and must be a score of the run's evaluation.metrics: fid, precision, recall"),
        (
            ["--scan", "fid", "--num_images", "3"],
            "evaluation.num_images is 3, and evaluation.metrics fid, precision_re",
        ),
        (["--sigma_rel", "0.004"], "sigma_rel 0.004 cannot be put together from 20 snapshot(s) of sigma_rel 0.05 and "),
        (["--scan", "fid", "--sigma_rel", "[0.1,0.004]"], "an average of sigma_rel 0.004 cannot be put together"),
        (
            ["--sigma_rel", "0.1", "--output", "config.yaml"],
            "config.yaml cannot be a folder, because config.yaml is a file",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(finished_run)
    assert said in refusal(monkeypatch, capsys, finished_run, *words)


def test_a_run_without_what_is_needed_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (monkeypatch, capsys, run, "--sigma_rel", "0.1")
    recipe = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(recipe.replace("extractor: digits", "extractor: null"))
    said = refusal(monkeypatch, capsys, run, "--scan", "fid")
    assert f"{run} scores no images (evaluation.extractor is null in its config.yaml)" in said
    cut = run / "averages" / "step-20.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert f"{cut} is damaged, or no snapshot of averages (" in refusal(*asked)
    (run / "model_index.json").unlink()
    shutil.rmtree(run / "checkpoints")
    cut.unlink()
    assert f"{run} has neither a model_index.json nor a complete checkpoint yet; wait for one" in refusal(*asked)
    shutil.rmtree(run / "averages")
    assert f"{run} has no snapshots of averages in averages; they are made by a run with --training." in refusal(*asked)
    (run / "config.yaml").unlink()
    assert f"run is {run} and must be the folder of a training run, which has a config.yaml" in refusal(*asked)
