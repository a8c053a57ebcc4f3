"""Augmentation: exact where it permutes pixels, else true to its parameters, and the same however it is cut."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_hf.data.augmentation import (
    NUM_LABELS,
    SYM6,
    Augmentation,
    inverse_maps,
    transformed,
    warped,
)
from ddpm_hf.data.batches import Batch, Batches
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import ImageData, load_cached_images, load_image_data
from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.pixels import PixelFormat

N = 48
NO_FLIPS = torch.zeros(N, dtype=torch.bool)
NONE: dict[str, Any] = {"scale": 0, "angle": 0, "stretch": 0, "axis": 0, "shift": (0, 0)}


def one_of(processes: int, index: int = 0, accumulation: int = 1) -> Any:
    return SimpleNamespace(
        num_processes=processes,
        process_index=index,
        gradient_accumulation_steps=accumulation,
        device=torch.device("cpu"),
    )


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return 2 * torch.rand(N, 3, 8, 8, generator=rng) - 1


def maps(**parameters: Any) -> Tensor:
    """The inverse map of one image."""
    values = {name: np.array([value], dtype=float) for name, value in (NONE | parameters).items()}
    return torch.from_numpy(inverse_maps(**values)).float()


def smooth(side: int = 32) -> Tensor:
    """A picture (1, 1, side, side) of low frequencies, with its weight in the middle."""
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, side)], indexing="ij")
    waves = torch.sin(3 * x + y) * torch.cos(2 * y - x) + 0.3 * x
    return (0.9 * waves * torch.exp(-8 * (x**2 + y**2))).view(1, 1, side, side)


SIDE = 65


def blob(x: float, y: float, side: int = SIDE, width: float = 1.5) -> Tensor:
    """A Gaussian at (x, y) pixels from the middle, to the right and down."""
    places = torch.arange(side) - (side - 1) / 2
    squares = (places[None, :] - x) ** 2 + (places[:, None] - y) ** 2
    return torch.exp(-squares / (2 * width**2)).view(1, 1, side, side)


def centre_of(image: Tensor) -> tuple[float, float]:
    """Where the weight of its middle lies, in pixels from there; further out are mirror images."""
    image = image[..., SIDE // 4 : -(SIDE // 4), SIDE // 4 : -(SIDE // 4)]
    places = torch.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    weights = image[0, 0] / image.sum()
    return float((weights.sum(0) * places).sum()), float((weights.sum(1) * places).sum())


# Flips and quarter turns.


@pytest.mark.parametrize(
    ("setting", "forms"),
    [
        ("flip_vertical", [lambda x: x, lambda x: x.flip(-2)]),
        ("rotation", [lambda x: x, *(lambda x, k=k: x.rot90(k, (-2, -1)) for k in (1, 2, 3))]),
    ],
)
def test_symmetries_permute_pixels_and_each_form_is_as_likely(images: Tensor, setting: str, forms: list[Any]) -> None:
    counts = torch.zeros(len(forms))
    for step in range(10):
        found, labels = Augmentation(**{setting: True})(images, NO_FLIPS, 0, step, 0)
        assert labels is None
        for before, after in zip(images, found, strict=True):
            counts += torch.tensor([torch.equal(form(before), after) for form in forms])
    assert counts.sum() == 10 * N
    expected = 10 * N / len(forms)
    assert ((counts - expected) ** 2 / expected).sum() < 17  # chi squared of 3 degrees: once in 1,400


def test_all_symmetries_together_are_the_eight_of_the_square(images: Tensor) -> None:
    flips = torch.arange(N) % 2 == 1
    found, _ = Augmentation(flip=True, flip_vertical=True, rotation=True)(images, flips, 0, 0, 0)
    eight = [[form.rot90(k, (-2, -1)) for k in range(4) for form in (image, image.flip(-1))] for image in images]
    which = [[torch.equal(form, after) for form in forms] for forms, after in zip(eight, found, strict=True)]
    assert all(sum(row) == 1 for row in which)
    assert all(any(column) for column in zip(*which, strict=True))


def test_rectangles_are_not_turned_by_quarters() -> None:
    with pytest.raises(ValueError, match=r"random_rotation turns .* of 'x' are 4 x 6, which would change their shape"):
        Augmentation(rotation=True).check("x", (1, 4, 6))
    Augmentation(flip_vertical=True, probability=0.5).check("x", (1, 4, 6))


# The transforms of Karras et al.


def test_the_filter_is_the_wavelet_that_it_says() -> None:
    """Orthogonal to its even shifts, with six vanishing moments: that is Daubechies' family of this length."""
    taps = np.array(SYM6)
    products = [float(taps[2 * k :] @ taps[: 12 - 2 * k]) for k in range(6)]
    assert products == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-10)
    places = np.arange(12)
    moments = [float(((-1.0) ** places * places**power) @ taps) for power in range(6)]
    assert moments == pytest.approx([0] * 6, abs=1e-7)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (2, 3), (1, 7)])
def test_no_transform_is_the_image_itself(rng: torch.Generator, shape: tuple[int, int]) -> None:
    """To rounding by way of the filters, for which nothing is frozen to be so; and bit for bit where none was drawn."""
    images = 2 * torch.rand(3, 2, *shape, generator=rng) - 1
    torch.testing.assert_close(warped(images, maps().expand(3, -1, -1)), images, rtol=0, atol=1e-5)
    assert torch.equal(transformed(images, np.zeros((3, NUM_LABELS)), maps().expand(3, -1, -1).numpy()), images)


def test_shifts_by_whole_pixels_move_pixels(rng: torch.Generator) -> None:
    images = 2 * torch.rand(1, 1, 16, 16, generator=rng) - 1
    moved = warped(images, maps(shift=(1.0, -0.5)))  # 2 pixels to the right, 1 up
    torch.testing.assert_close(moved[..., 4:-4, 6:-4], images[..., 5:-3, 4:-6], rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotation_is_counter_clockwise(turns: int) -> None:
    image = smooth()
    turned = warped(image, maps(angle=turns * np.pi / 2))
    torch.testing.assert_close(turned, image.rot90(turns, (-2, -1)), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"scale": 5}, (8, 4)),  # 2^(0.2 * 5) = 2
        ({"scale": -5}, (2, 1)),
        ({"stretch": 5}, (8, 1)),
        ({"stretch": -5}, (2, 4)),
        ({"stretch": 5, "axis": np.pi / 2}, (2, 4)),
        ({"angle": np.pi / 2}, (2, -4)),
        ({"shift": (0.5, -0.5)}, (4 + SIDE / 16, 2 - SIDE / 16)),
        (
            {"scale": 2.5, "angle": np.pi / 2, "stretch": 2.5, "shift": (0.5, 0.5)},
            (4 + SIDE / 16, -4 + SIDE / 16),
        ),
    ],
)
def test_a_point_goes_where_the_parameters_say(parameters: dict[str, Any], place: tuple[float, float]) -> None:
    """Scaled, then turned, then stretched, then shifted."""
    found = centre_of(warped(blob(4, 2), maps(**parameters)))
    assert found == pytest.approx(place, abs=0.15)


@pytest.mark.parametrize(
    ("parameters", "inverse"),
    [
        ({"scale": 1}, {"scale": -1}),
        ({"angle": 0.7}, {"angle": -0.7}),
        ({"stretch": 1, "axis": 0.4}, {"stretch": -1, "axis": 0.4}),
        ({"shift": (0.3, -0.5)}, {"shift": (-0.3, 0.5)}),
    ],
)
def test_a_transform_and_its_inverse_give_the_image_back(parameters: dict[str, Any], inverse: dict[str, Any]) -> None:
    image = smooth()
    there = warped(image, maps(**parameters))
    assert (there - image).abs().max() > 0.05
    back, middle = warped(there, maps(**inverse)), (..., slice(4, -4), slice(4, -4))  # a turn loses the corners
    torch.testing.assert_close(back[middle], image[middle], rtol=0, atol=0.02)


def test_a_flip_undoes_a_flip(images: Tensor) -> None:
    labels = np.zeros((N, NUM_LABELS))
    labels[:, :2] = np.arange(2 * N).reshape(N, 2) % 3 == 0
    none = maps().expand(N, -1, -1).numpy()
    once = transformed(images, labels, none)
    assert torch.equal(transformed(once, labels, none), images)
    for image, found, (x, y) in zip(images, once, labels[:, :2], strict=True):
        dims = [dim for dim, flipped in ((-1, x), (-2, y)) if flipped]
        assert torch.equal(found, image.flip(dims))


def test_labels_say_what_was_done(images: Tensor) -> None:
    """All zero and the image itself, or neither; with the laws of the paper."""
    found = [Augmentation(probability=0.3)(images, NO_FLIPS, 0, step, 0) for step in range(60)]
    labels = torch.cat([label for _, label in found if label is not None])
    same = torch.cat([(x == images).flatten(1).all(dim=1) for x, _ in found])
    assert labels.shape == (60 * N, NUM_LABELS)
    assert torch.equal(same, (labels == 0).all(dim=1))
    is_drawn = torch.stack([labels[:, i] != 0 for i in (0, 1, 2, 4, 7)] + [labels[:, 5:7].any(dim=1)]).float()
    expected = torch.tensor([0.5, 0.15, 0.3, 0.3, 0.3, 0.3])  # left to right always, upside down half of the 0.3
    torch.testing.assert_close(is_drawn.mean(dim=1), expected, rtol=0, atol=0.035)
    scale, shifts = labels[:, 2][labels[:, 2] != 0], labels[:, 7:][labels[:, 7] != 0]
    for normal in (scale, *shifts.unbind(1), labels[:, 5:7].norm(dim=1)[labels[:, 5:7].any(dim=1)]):
        assert normal.square().mean() == pytest.approx(1, abs=0.15)
    cosine, sine = labels[:, 3] + 1, labels[:, 4]
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones_like(sine))
    is_along_x = labels[:, 6][labels[:, 5:7].any(dim=1)] == 0
    assert is_along_x.float().mean() == pytest.approx(0.5, abs=0.06)


def test_a_step_a_seed_and_a_sample_have_their_own(images: Tensor) -> None:
    def drawn(seed: int, step: int, start: int) -> Tensor:
        labels = Augmentation(probability=0.5)(images, NO_FLIPS, seed, step, start)[1]
        assert labels is not None
        return labels

    first = drawn(0, 0, 0)
    assert not torch.equal(first, drawn(1, 0, 0))
    assert not torch.equal(first, drawn(0, 1, 0))
    assert torch.equal(first[5:], drawn(0, 0, 5)[:-5])
    assert len(first.unique(dim=0)) > 0.9 * N


# In batches.


def batch_of(data: ImageData, processes: int, accumulation: int, augmentation: Augmentation) -> Batch:
    parts = [
        Batches(
            data, N, TimestepSampler(100), 7, one_of(processes, index, accumulation), augmentation=augmentation
        ).micro_batch(3, micro)
        for index in range(processes)
        for micro in range(accumulation)
    ]
    return Batch(
        torch.cat([part.x_0 for part in parts]),
        torch.cat([part.t for part in parts]),
        torch.cat([part.noise for part in parts]),
        None,
        torch.cat([part.weights for part in parts]),
        torch.cat([part.augment_labels for part in parts if part.augment_labels is not None]),
    )


def data_of(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8, form: PixelFormat | None = None) -> ImageData:
    values = torch.randint(256, (60, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    return ImageData("x", values, None, format=form or PixelFormat())


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 4), (2, 2), (4, 1), (3, 1), (8, 6)])
@pytest.mark.parametrize("side", [8, 20])
def test_the_global_batch_is_bitwise_the_same_however_it_is_cut(processes: int, accumulation: int, side: int) -> None:
    data = data_of((3, side, side)).cropped((side - 4, side - 4))
    everything = Augmentation(True, True, True, 0.5)
    whole, cut = (batch_of(data, *cuts, everything) for cuts in ((1, 1), (processes, accumulation)))
    assert whole.augment_labels is not None
    assert whole.augment_labels.any()
    for name in ("x_0", "t", "noise", "augment_labels"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)), name


def test_augmentation_leaves_every_other_draw_as_it_was() -> None:
    data = data_of((1, 8, 8))
    plain = Batches(data, N, TimestepSampler(100), 7, one_of(1), augmentation=Augmentation(flip=True)).micro_batch(3, 0)
    told = batch_of(data, 1, 1, Augmentation(True, True, True, 0.5))
    for name in ("t", "noise", "weights"):
        assert torch.equal(getattr(plain, name), getattr(told, name))
    both = batch_of(data, 1, 1, Augmentation(flip=True, probability=0.5))
    assert told.augment_labels is not None
    assert both.augment_labels is not None
    assert torch.equal(told.augment_labels, both.augment_labels)
    is_as_it_was = ~both.augment_labels.any(dim=1)
    assert is_as_it_was.any()
    assert torch.equal(both.x_0[is_as_it_was], plain.x_0[is_as_it_was])  # whose flips have their own stream


@pytest.mark.parametrize(
    ("dtype", "form"),
    [
        (torch.uint16, PixelFormat("uint16", (0,), (255,))),
        (torch.float16, PixelFormat("float16", (0,), (255,))),
        (torch.float32, PixelFormat("float32", (0,) * 5, (255,) * 5)),
    ],
)
def test_images_of_any_type_and_channels_are_augmented_as_the_network_sees_them(
    dtype: torch.dtype, form: PixelFormat
) -> None:
    augmentation = Augmentation(True, True, False, 0.5)
    expected = batch_of(data_of((5, 8, 6)).cropped((6, 4)), 1, 1, augmentation)
    found = batch_of(data_of((5, 8, 6), dtype, form).cropped((6, 4)), 2, 1, augmentation)
    torch.testing.assert_close(found.x_0, expected.x_0, rtol=0, atol=2e-3)
    assert found.x_0.abs().max() <= 1


# Random crops.


def test_windows_are_cut_from_the_images_anew_in_each_step() -> None:
    """Image i holds its number, its row and its column in its channels."""
    number, row, column = torch.meshgrid(torch.arange(40), torch.arange(9), torch.arange(7), indexing="ij")
    images = torch.stack([number, row, column], dim=1).to(torch.uint8)
    data = ImageData("x", images, torch.arange(40)).cropped((4, 5))
    assert data.shape == (3, 4, 5)
    places = set()
    for step in range(40):
        found, labels = data.batch(step, 20, 0, 20, seed=1)
        assert labels is not None
        assert torch.equal(found[:, 0, 0, 0], labels)
        for image in found.long():
            top, left = int(image[1, 0, 0]), int(image[2, 0, 0])
            assert torch.equal(image, images[int(image[0, 0, 0]), :, top : top + 4, left : left + 5].long())
            places.add((top, left))
    assert places == {(top, left) for top in range(6) for left in range(3)}


def test_all_but_training_sees_the_middles() -> None:
    whole = load_cached_images(DataConfig(name="digits", split="test"))
    data = load_cached_images(DataConfig(name="digits", split="test", random_crop=(4, 6)))
    assert torch.equal(data.images, whole.images[:, :, 2:6, 1:7])
    assert data.fingerprint != whole.fingerprint
    assert "trained on random windows of images of 8 x 8, and compared with their middles" in data.remark


@pytest.mark.parametrize("crop", [8, (8, 9), 9])
def test_a_crop_is_smaller_than_the_images(crop: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.random_crop is .* of 'digits' are 8 x 8, so there is nothing to crop"):
        load_image_data(DataConfig(random_crop=crop))


def test_a_stream_gives_windows_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"streaming": True, "shuffle_buffer": 10}
    whole, source = (load_image_data(DataConfig(**settings, random_crop=crop)) for crop in (None, 6))
    assert (source.shape, whole.shape) == ((1, 6, 6), (1, 8, 8))
    larger, labels = whole.batch(2, 12, 0, 12, seed=0)
    windows, same = source.batch(2, 12, 0, 12, seed=0)
    assert labels is not None
    assert same is not None
    assert torch.equal(labels, same)
    for image, window in zip(larger, windows, strict=True):
        assert any(torch.equal(image[:, y : y + 6, x : x + 6], window) for y in range(3) for x in range(3))
    part, _ = source.batch(2, 12, 5, 9, seed=0)
    assert torch.equal(part, windows[5:9])
