"""What the page draws: the images of the command, their way out of the noise, walks, and parts painted anew."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.cli import sample
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.demo.drawing import between, draw, known_image, marked, repaint
from ddpm_hf.demo.fields import for_a_brush, opacity_of, request_of
from ddpm_hf.demo.models import Model, Source
from ddpm_hf.images import from_uint8, to_uint8
from ddpm_hf.pixels import PixelFormat
from ddpm_hf.sampling.pictures import denoising_path
from ddpm_hf.sampling.request import Request
from ddpm_hf.sampling.samplers import SAMPLERS
from tests.demo.models import make_model, small

FEW = Request(num_images=3, seed=5, scheduler="ddim", num_inference_steps=4, timestep_spacing="trailing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Source(str(folder), threads=1).model()


def by_command(monkeypatch: pytest.MonkeyPatch, folder: Path, output: Path, *arguments: str) -> Any:
    """The images of ddpm-hf-sample, or the sentence of its refusal."""
    words = ["--model", folder, "--output", output, "--threads", 1, "--quiet", *arguments]
    monkeypatch.setattr(sys, "argv", ["ddpm-hf-sample", *map(str, words)])
    sample.main()
    return load_images(output)


@pytest.mark.parametrize(
    ("sampler", "spacing", "eta"),
    [("ddim", "trailing", 0.0), ("ddim", None, 1.0), ("unipc", "linspace", 0.0), (None,) * 3],
)
def test_an_image_of_the_page_is_that_of_the_command(
    model: Model,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str | None,
    spacing: str | None,
    eta: float | None,
) -> None:
    words = ["--num_images", "3", "--seed", "5", "--num_inference_steps", "4"]
    for name, value in (("scheduler", sampler), ("timestep_spacing", spacing), ("eta", eta)):
        words += [] if value is None else [f"--{name}", str(value)]
    drawn = draw(model, request_of(5, 3, sampler or "", 4, spacing or "", eta, "", 1))
    assert torch.equal(drawn.values, by_command(monkeypatch, folder, tmp_path / "samples", *words))
    shown = torch.stack([small(picture) for picture, _ in drawn.pictures])
    assert torch.equal(shown, drawn.values[:, 0])
    assert [caption for _, caption in drawn.pictures] == ["seed 5", "seed 6", "seed 7"]


def test_a_class_and_guidance_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "model", num_class_embeds=4)
    drawn = draw(Source(str(folder), 1).model(), request_of(0, 3, "ddim", 4, "", 0, " 0,2 ", 2.5))
    words = ["--scheduler", "ddim", "--class_labels", "0,2", "--guidance_scale", "2.5", "--num_inference_steps", "4"]
    theirs = by_command(monkeypatch, folder, tmp_path / "samples", "--num_images", "3", *words)
    assert torch.equal(drawn.values, theirs)
    assert [caption for _, caption in drawn.pictures] == ["seed 0, class 0", "seed 1, class 2", "seed 2, class 0"]


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"seed": -1}, ["--seed", "-1"]),
    ({"num_images": 0}, ["--num_images", "0"]),
    ({"num_inference_steps": 0}, ["--num_inference_steps", "0"]),
    ({"num_inference_steps": 2000}, ["--num_inference_steps", "2000"]),
    (
        {"num_inference_steps": 1, "timestep_spacing": "leading"},
        ["--num_inference_steps", "1", "--timestep_spacing", "leading"],
    ),
    (
        {"scheduler": "unipc", "timestep_spacing": "quadratic"},
        ["--scheduler", "unipc", "--timestep_spacing", "quadratic"],
    ),
    ({"scheduler": "ddpm", "eta": 0.5}, ["--scheduler", "ddpm", "--eta", "0.5"]),
    ({"eta": 1.5}, ["--eta", "1.5"]),
    ({"scheduler": "pndm", "num_inference_steps": 3}, ["--scheduler", "pndm", "--num_inference_steps", "3"]),
    ({"class_labels": "1"}, ["--class_labels", "1"]),
    ({"class_labels": "a"}, ["--class_labels", "a"]),
    ({"guidance_scale": 1e6}, ["--guidance_scale", "1e6"]),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=lambda part: " ".join(part) if isinstance(part, list) else "")
def test_wrong_values_give_the_sentence_of_the_command(
    model: Model,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    values: dict[str, Any],
    words: list[str],
) -> None:
    usual = {"seed": 0, "num_images": 1, "scheduler": "", "num_inference_steps": 4, "timestep_spacing": "", "eta": 0}
    fields = {**usual, "class_labels": "", "guidance_scale": 1, **values}
    with pytest.raises(ValueError, match=r"\w") as refusal:
        draw(model, request_of(*fields.values()))
    usual_words = [] if "--num_inference_steps" in words else ["--num_inference_steps", "4"]
    with pytest.raises(SystemExit):
        by_command(monkeypatch, folder, tmp_path / "samples", *usual_words, *words)
    assert capsys.readouterr().err.strip() == f"ddpm-hf-sample: error: {refusal.value}"


@pytest.mark.parametrize("value", [None, 2.5, "7", True])
def test_a_field_that_holds_no_whole_number_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_inference_steps=.* is not one integer\.$"):
        request_of(0, 1, "", value, "", 0, "", 1)


def test_whole_numbers_come_from_a_browser_as_floating_point_too() -> None:
    assert request_of(3.0, 2.0, "ddim", 4.0, "", None, None, None) == Request(2, 3, "ddim", 4)


def test_a_page_draws_no_thousands(model: Model) -> None:
    with pytest.raises(ValueError, match=r"num_images is 65 .* at most 64 on this page"):
        draw(model, replace(FEW, num_images=65))


def test_the_way_is_that_of_the_denoising_pictures(model: Model) -> None:
    drawn = draw(model, FEW)
    scheduler = drawn.plan.scheduler
    samples, predictions = denoising_path(model.pipe.unet, scheduler, FEW.seeds)
    assert torch.equal(torch.stack(drawn.way.samples), samples)
    assert drawn.way.predictions is not None
    assert torch.equal(torch.stack(drawn.way.predictions), predictions)
    assert drawn.way.timesteps == [*scheduler.timesteps.tolist(), 0]


def test_a_long_way_is_thinned_from_first_to_last(model: Model) -> None:
    way = draw(model, replace(FEW, num_inference_steps=500, num_images=1)).way
    assert len(way) == len(way.timesteps) == 51
    assert way.predictions is not None
    assert len(way.predictions) == 51
    assert (way.timesteps[0], way.timesteps[-1]) == (999, 0)
    assert way.timesteps == sorted(way.timesteps, reverse=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_shows_its_way(model: Model, name: str) -> None:
    """Also one whose noise grows beyond the range of images: they are neither black nor white all over."""
    steps = []
    drawn = draw(
        model, replace(FEW, scheduler=name, timestep_spacing=None, num_inference_steps=6), lambda *at: steps.append(at)
    )
    total = len(drawn.plan.scheduler.timesteps)
    assert steps == [(i + 1, total) for i in range(total)]
    assert len(drawn.way) == total + 1
    if drawn.plan.scheduler.init_noise_sigma > 1:
        early = drawn.way.samples[1]
        assert ((early == 0) | (early == 255)).float().mean() < 0.5
    assert torch.equal(drawn.way.samples[-1], drawn.values)
    says = ("adams", "ddim", "ddpm", "euler", "euler_ancestral", "heun", "kdpm2", "lms")
    assert (drawn.way.predictions is not None) == (name in says), name


def test_a_walk_begins_and_ends_with_the_images_of_the_seeds(model: Model) -> None:
    pictures = between(model, FEW, 9, 5)
    ends = [draw(model, replace(FEW, seed=seed, num_images=1)).values[0, 0] for seed in (5, 9)]
    walk = [small(picture).int() for picture, _ in pictures]
    assert [caption for _, caption in pictures] == ["seed 5", "25%", "50%", "75%", "seed 9"]
    assert (walk[0] - ends[0].int()).abs().max() <= 1  # of another batch
    assert (walk[-1] - ends[1].int()).abs().max() <= 1
    assert (walk[2] - walk[0]).abs().max() > 1


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"scheduler": "ddpm"}])
def test_a_walk_needs_a_sampler_without_noise(model: Model, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a sampler without noise of its own"):
        between(model, replace(FEW, **options), 9, 5)


@pytest.mark.parametrize(
    ("last", "columns", "named"), [(-1, 5, "last seed"), (1, 1, "number of images"), (1, 65, "from 2 to 64")]
)
def test_a_walk_has_two_ends(model: Model, last: int, columns: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        between(model, FEW, last, columns)


def test_inpainting_keeps_what_is_not_marked_and_is_that_of_repaint(folder: Path, model: Model) -> None:
    image = draw(model, replace(FEW, num_images=1)).values[0]
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:7] = True
    steps = []
    painted = small(repaint(model, from_uint8(image), mask, FEW, 2, lambda *at: steps.append(at)))
    assert torch.equal(painted[~mask], image[0][~mask])
    assert not torch.equal(painted[mask], image[0][mask])
    assert len(steps) == steps[0][1]
    pipe = DDPMCustomPipeline.from_pretrained(folder, custom_pipeline="repaint")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        from_uint8(image)[None], mask, seed=5, num_inference_steps=4, num_resamplings=2, output_type="pt"
    ).images
    assert torch.equal(painted, to_uint8(theirs * 2 - 1)[0, 0])


def test_inpainting_takes_a_class(tmp_path: Path) -> None:
    model = Source(str(make_model(tmp_path / "model", num_class_embeds=3)), 1).model()
    mask = torch.ones(8, 8, dtype=torch.bool)
    one, other = (small(repaint(model, torch.zeros(1, 8, 8), mask, replace(FEW, class_labels=c), 1)) for c in "01")
    assert not torch.equal(one, other)


def test_nothing_marked_is_said(model: Model) -> None:
    with pytest.raises(ValueError, match="nothing is marked"):
        repaint(model, torch.zeros(1, 8, 8), torch.zeros(8, 8, dtype=torch.bool), FEW, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_enlarged_image_comes_back_as_it_was(tmp_path: Path, channels: int) -> None:
    model = Source(str(make_model(tmp_path / "model", channels)), 1).model()
    drawn = draw(model, replace(FEW, num_images=1))
    canvas = for_a_brush(drawn.pictures[0][0]).convert("RGBA")
    assert canvas.size == (384, 384)
    assert torch.equal(to_uint8(known_image(model, canvas)[None]), drawn.values)


def test_a_photograph_is_cut_to_its_middle(model: Model) -> None:
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 30:70] = 255
    assert bool((known_image(model, Image.fromarray(picture)) == 1).all())


def test_a_brush_marks_the_pixels_that_it_covers(model: Model) -> None:
    layer = np.zeros((384, 384, 4), np.uint8)
    layer[96:144, 48:120, 3] = 200  # pixel 1 and half of pixel 2 in row 2
    layer[0:4, 0:384, 3] = 255  # a twelfth of row 0
    mask = marked(model, opacity_of([Image.fromarray(layer)], (384, 384)))
    assert mask.nonzero().tolist() == [[2, 1], [2, 2]]
    assert not marked(model, opacity_of([], (384, 384))).any()


def test_images_of_other_types_are_drawn_in_their_units_and_shown(tmp_path: Path, model: Model) -> None:
    deep = DDPMCustomPipeline(model.pipe.unet, model.pipe.scheduler, PixelFormat("uint16", (0,), (4095,)).to_dict())
    drawn = draw(Model("deep", deep), FEW)
    assert drawn.values.dtype == torch.uint16
    assert not Model("deep", deep).is_of_pictures
    eight = draw(model, FEW)
    shown = torch.stack([small(picture) for picture, _ in drawn.pictures]).int()
    assert (shown - eight.values[:, 0].int()).abs().max() <= 1


def test_five_channels_are_shown_by_the_first_three(tmp_path: Path) -> None:
    model = Source(str(make_model(tmp_path / "model", 5)), 1).model()
    drawn = draw(model, FEW)
    assert drawn.values.shape == (3, 5, 8, 8)
    assert drawn.pictures[0][0].mode == "RGB"
    assert "5-channel images of 8 x 8 pixels" in str(model)
