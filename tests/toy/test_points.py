"""The toy: its number means what it says, its pictures show what they say, and it learns all its data."""

import itertools
import sys
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.toy import points as toy
from ddpm_hf.toy.__main__ import main
from ddpm_hf.toy.pictures import density, draw_animation, draw_strip
from ddpm_hf.toy.points import energy_distance, floor_of_energy_distance, wasserstein_distance
from ddpm_hf.toy.settings import DATA, ToyConfig

QUICK = {"steps": 400, "batch_size": 256, "num_points": 800, "num_inference_steps": 20, "quiet": True}


def test_energy_distance_of_sets_whose_value_is_known() -> None:
    here, there = torch.zeros(3, 2), torch.tensor([[3.0, 4.0]] * 5)
    assert energy_distance(here, there) == pytest.approx(10.0)
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert energy_distance(points, points.flip(0)) == pytest.approx(0, abs=1e-5)


def test_energy_distance_of_two_gaussians_is_their_formula() -> None:
    """E|z| of a 2-D Gaussian of variance s^2 per axis is s sqrt(pi / 2)."""
    generator = torch.Generator().manual_seed(0)
    narrow, wide = torch.randn(4000, 2, generator=generator), 2 * torch.randn(4000, 2, generator=generator)
    expected = (np.pi / 2) ** 0.5 * (2 * 5**0.5 - 2**0.5 - 8**0.5)
    assert energy_distance(narrow, wide) == pytest.approx(expected, rel=0.1)


def test_the_floor_is_the_average_over_many_pairs_of_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [[toy.gaussian8(50, generator) for _ in range(2)] for _ in range(400)]
    measured = [energy_distance(*pair) for pair in pairs]
    predicted = [floor_of_energy_distance(data) for pair in pairs for data in pair]
    assert np.mean(predicted) == pytest.approx(np.mean(measured), abs=4 * np.std(measured) / 400**0.5)


def test_the_wasserstein_distance_is_the_least_over_all_ways_to_pair_the_points() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 2, generator=generator), 1 + torch.randn(6, 2, generator=generator)
    ways = [(x - y[list(order)]).square().sum(dim=1).mean().sqrt().item() for order in itertools.permutations(range(6))]
    assert wasserstein_distance(x, y) == pytest.approx(min(ways), rel=1e-5)
    assert max(ways) > 1.2 * min(ways)


def test_the_wasserstein_distance_of_moved_points_and_of_points_on_a_line() -> None:
    """A set is as far from itself moved as it was moved, and on a line the order of the points is kept."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 2, generator=generator), torch.randn(300, 2, generator=generator)
    assert wasserstein_distance(x, x.flip(0) + torch.tensor([0.3, 0.4])) == pytest.approx(0.5, rel=1e-5)
    x[:, 1], y[:, 1] = 0, 0
    in_order = (x[:, 0].sort().values - y[:, 0].sort().values).square().mean().sqrt().item()
    assert wasserstein_distance(x, y) == pytest.approx(in_order, rel=1e-5)


@pytest.mark.parametrize("name", DATA)
def test_data_have_about_unit_variance_and_come_from_the_generator(name: str) -> None:
    points_of = resolve_name(DATA[name])
    points = points_of(20_000, torch.Generator().manual_seed(0))
    assert points.shape == (20_000, 2)
    assert points.dtype == torch.float32
    assert points.mean(dim=0).abs().max() < 0.4
    assert points.std(dim=0) == pytest.approx([1.0, 1.0], abs=0.4)
    assert torch.equal(points, points_of(20_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheduler": "ddpm"},
        {"scheduler": "unipc"},
        {"scheduler": "euler"},
        {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=str,
)
def test_a_few_steps_of_training_come_far_nearer_to_the_data_than_noise(
    tmp_path: Path, options: dict[str, str]
) -> None:
    found = toy.run(ToyConfig(data="two_moons", output=tmp_path, **QUICK, **options))
    noise = torch.randn(800, 2, generator=torch.Generator().manual_seed(0))
    of_noise = energy_distance(noise, toy.two_moons(800, torch.Generator().manual_seed(1)))
    assert 0 < found.energy_floor < 0.01 < of_noise
    assert found.energy < of_noise / 3
    assert 0 < found.moved_floor < found.moved < wasserstein_distance(noise, toy.two_moons(800, torch.Generator()))
    with Image.open(tmp_path / "strip.png") as strip, Image.open(tmp_path / "process.gif") as animation:
        assert strip.size[0] > 2 * strip.size[1]
        assert animation.n_frames > 10  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        toy.run(ToyConfig(output=tmp_path / name, **{**QUICK, "steps": 5}))
    for file in ("strip.png", "process.gif"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_picture_shows_points_where_they_are() -> None:
    image = density(torch.tensor([[2.0, 1.0]]), size=50).astype(int)
    row, column = np.unravel_index(image.sum(axis=2).argmax(), (50, 50))
    assert (row, column) == (15, 45)  # right of the middle by 2 / 2.5 of the half side, above it by 1 / 2.5
    assert (density(torch.tensor([[9.0, 9.0]]), size=50) == image[0, 0]).all()


def test_strip_and_animation_end_with_the_clean_points(tmp_path: Path) -> None:
    times = [*range(29, 0, -1), -1]
    points = [torch.randn(200, 2, generator=torch.Generator().manual_seed(i)) / (i + 1) for i in range(30)]
    draw_strip(tmp_path / "strip.png", times, points, points[::-1], panels=4)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    for top, wanted in ((24, points[-1]), (24 + 160 + 24, points[0])):
        assert (strip[top : top + 160, -168:-8] == density(wanted)).all()
    draw_animation(tmp_path / "process.gif", times, points, points[::-1], frames=4)
    with Image.open(tmp_path / "process.gif") as animation:
        assert animation.n_frames == 4  # type: ignore[attr-defined]
        animation.seek(3)
        last = np.asarray(animation.convert("RGB")).astype(int)[24:224]
    for left, wanted in ((8, points[-1]), (216, points[0])):
        assert np.abs(last[:, left : left + 200] - density(wanted, size=200)).mean() < 5  # of 256, by its 32 colours


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "circles"], "data is 'circles' and must be one of gaussian8"),
        (["--steps", "0"], "steps is 0 and must be at least 1"),
        (["--scheduler", "eular"], "scheduler was given 'eular' and takes one of ['ddim', 'ddpm'"),
        (["--scheduler", "unipc", "--prediction_type", "posterior_mean"], "use the sampler ddim or ddpm"),
        (["--num_inference_steps", "2000", "--steps", "1"], "2000"),
        (["--stepz", "3"], "the nearest one is 'steps'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_end_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", "--output", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert said in sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_every_data_set_is_learned_to_within_three_times_the_floor(tmp_path: Path, name: str) -> None:
    found = toy.run(ToyConfig(data=name, output=tmp_path, quiet=True))
    assert found.energy < 3 * found.energy_floor
    assert found.moved < 2 * found.moved_floor


def test_many_points_are_compared_by_some_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The distances of all pairs of 200,000 points are 160 GB."""
    sizes = []
    monkeypatch.setattr(toy, "energy_distance", lambda x, y: sizes.append((len(x), len(y))) or 1.0)
    monkeypatch.setattr(toy, "floor_of_energy_distance", lambda x: sizes.append(len(x)) or 1.0)
    monkeypatch.setattr(toy, "wasserstein_distance", lambda x, y: sizes.append((len(x), len(y))) or 1.0)
    monkeypatch.setattr(toy, "draw_animation", lambda *arguments: None)
    toy.run(ToyConfig(output=tmp_path, steps=1, num_points=20_000, num_inference_steps=2, scheduler="ddim"))
    assert set(sizes) == {(10_000, 10_000), 10_000, (2000, 2000)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_points": 10**9}, "num_points is 1000000000 and must be at most 10,000,000"),
        ({"num_points": 3_000_000}, "num_points is 3000000 and must be at most 2,000,000 with num_inference_steps 100"),
        ({"num_train_timesteps": 10**8}, "num_train_timesteps is 100000000 and must be at most 1,000,000"),
    ],
)
def test_points_that_no_memory_holds_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ToyConfig(**options)  # type: ignore[arg-type]
