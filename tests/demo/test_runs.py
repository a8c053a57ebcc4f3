"""What the page knows of a run: curves, grids, training images; and the model of a run that is still training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpm_hf.demo.drawing import draw
from ddpm_hf.demo.models import Source
from ddpm_hf.demo.runs import GRIDS, MOST_POINTS, Run
from ddpm_hf.metrics.extractors import load_extractor
from ddpm_hf.sampling.request import Request
from tests.demo.models import make_model, small
from tests.runs import SCORED_BRIEFLY, finished, log_of

FEW = Request(num_images=2, scheduler="ddim", num_inference_steps=3, timestep_spacing="trailing")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["--training.steps", 4, *SCORED_BRIEFLY, "--training.sample_every", 2]
    return finished(tmp_path_factory.mktemp("runs") / "run", *words)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def of(folder: Path) -> Run:
    return Run(folder, Source(str(folder), 1).accelerator)


def test_curves_are_those_of_the_log(trained: Path) -> None:
    losses = [
        {"step": line["step"], "loss": line["loss"], "images": "training images"}
        for line in log_of(trained)
        if "loss" in line
    ]
    assert len(losses) == 4
    run = of(trained)
    assert run.losses() == losses
    curves = run.curves()
    assert list(curves)[:3] == ["FID", "Precision", "Recall"]
    scored = [line for line in log_of(trained) if "fid" in line]
    assert curves["FID"] == [{"step": line["step"], "value": line["fid"]} for line in scored]
    assert len(curves["learning rate"]) == 4


def test_grids_are_in_their_order_with_their_steps(trained: Path) -> None:
    assert [caption for _, caption in of(trained).grids()] == ["step 2", "step 4"]


def test_the_end_is_told_with_its_scores(trained: Path) -> None:
    run = of(trained)
    assert run.progress() == "Step 4 of 4."
    fid = json.loads((trained / "metrics.json").read_text())["scores"]["fid"]["samples"]
    assert run.scores().startswith(f"The run has ended: FID {fid:.4g}")


def test_a_new_line_a_new_grid_and_the_end_change_the_state(run: Path) -> None:
    (run / "metrics.json").rename(run / "kept")
    states = [of(run).state]
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "loss": 1.5}\n{"step": 6, "lo')
    states.append(of(run).state)
    assert of(run).losses()[-1]["loss"] == 1.5  # without the half of a line
    assert of(run).scores() == ""
    shutil.copy(run / "samples" / "step-00000002.png", run / "samples" / "step-00000006.png")
    states.append(of(run).state)
    (run / "kept").rename(run / "metrics.json")
    states.append(of(run).state)
    assert len(set(states)) == 4
    assert of(run).state == states[-1]


def test_long_curves_and_many_grids_are_thinned(run: Path) -> None:
    lines = "".join(f'{{"step": {step}, "loss": {step}.0}}\n' for step in range(1, 2501))
    (run / "metrics.jsonl").write_text(lines)
    steps = [point["step"] for point in of(run).losses()]
    assert MOST_POINTS / 2 < len(steps) <= MOST_POINTS
    assert steps[-1] == 2500
    for step in range(5, 100):
        shutil.copy(run / "samples" / "step-00000002.png", run / "samples" / f"step-{step:08d}.png")
    (run / "samples" / "step-00000099.png").write_bytes(b"half of")
    captions = [caption for _, caption in of(run).grids()]
    assert len(captions) == GRIDS - 1
    assert captions[0] == "step 2"


def test_neighbours_are_the_nearest_of_all_training_images(trained: Path) -> None:
    run, model = of(trained), Source(str(trained), 1).model()
    drawn = draw(model, FEW)
    rows = run.neighbours(drawn, 3)
    assert run._real is not None
    data, _, real = run._real
    assert len(data) == 1297
    features = load_extractor("digits")(drawn.values)
    far = torch.cdist(features.double(), real.double())
    for (first, *others), picture, distances in zip(rows, drawn.pictures, far, strict=True):
        assert first == picture
        nearest = distances.argsort()[:3]
        assert [caption for _, caption in others] == [f"{distances[i]:.3g} away" for i in nearest]
        assert all(torch.equal(small(image), data.images[i, 0]) for (image, _), i in zip(others, nearest, strict=True))


def test_training_images_that_are_gone_are_one_sentence(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: digits", "name: my/photographs.zip"))
    drawn = draw(Source(str(run), 1).model(), FEW)
    with pytest.raises(ValueError, match="my/photographs"):
        of(run).neighbours(drawn, 3)


def test_a_run_under_way_shows_its_newest_checkpoint(run: Path) -> None:
    for name in ("model_index.json", "unet", "scheduler", "metrics.json"):
        path = run / name
        shutil.move(path, run.parent / name)
    newest = Path(shutil.move(run / "checkpoints" / "step-4", run.parent / "step-4"))
    source = Source(str(run), 1)
    before = source.model()
    assert source.model() is before
    assert before.step == 2
    assert "step 2 of a run that is not finished" in str(before)
    assert "weights of step 2" in str(draw(before, FEW))
    shutil.move(newest, run / "checkpoints" / "step-4")
    after = source.model()
    assert after.step == 4
    weights = load_file(run / "checkpoints" / "step-4" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(after.pipe.unet.state_dict()["conv_in.weight"], weights["conv_in.weight"])
    for name in ("unet", "scheduler", "model_index.json"):
        shutil.move(run.parent / name, run / name)
    assert source.model().step is None


def test_a_run_without_a_checkpoint_says_so(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"has no checkpoint yet to draw from; .*checkpoint_every"):
        Source(str(run), 1).model()


def test_a_pipeline_that_no_run_made_has_no_curves(tmp_path: Path) -> None:
    source = Source(str(make_model(tmp_path / "model")), 1)
    assert source.run is None
    assert source.model().step is None


@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder/either"])
def test_a_model_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Source(name, 1).model()
