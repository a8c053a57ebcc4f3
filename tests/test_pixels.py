"""Pixel formats: every value of a type survives, in its own units, and others are clipped."""

import pytest
import torch

from ddpm_hf.pixels import PixelFormat


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_level_of_a_whole_number_survives(dtype: str) -> None:
    form = PixelFormat.whole(dtype)
    levels = torch.arange(form.high[0] + 1).to(getattr(torch, dtype)).view(1, 1, 16, -1)
    images = form.to_model(levels)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(form.from_model(images), levels)


def test_each_channel_has_its_own_range() -> None:
    form = PixelFormat("float32", (-10.0, 0.0), (30.0, 0.5))
    values = torch.tensor([[-10.0, 10.0, 30.0], [0.0, 0.25, 0.5]])[None, :, None]
    expected = torch.tensor([-1.0, 0.0, 1.0]).expand(1, 2, 1, 3)
    assert torch.allclose(form.to_model(values), expected, atol=1e-6)
    assert torch.allclose(form.from_model(expected), values, atol=1e-6)


def test_values_beyond_the_range_are_clipped() -> None:
    form = PixelFormat("uint16", (100,), (300,))
    assert form.to_model(torch.tensor([0, 400]).to(torch.uint16).view(1, 1, 1, 2)).flatten().tolist() == [-1, 1]
    assert form.from_model(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)).flatten().tolist() == [100, 300]


@pytest.mark.parametrize("form", [PixelFormat(), PixelFormat("float16", (0.0, -1.0), (1.0, 2.5))])
def test_a_format_is_written_and_read(form: PixelFormat) -> None:
    assert PixelFormat.from_dict(form.to_dict()) == form


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int7", (0,), (1,)), ("uint8", (5,), (5,)), ("float32", (0,), (float("inf"),)), ("uint8", (0, 1), (3,))],
)
def test_what_is_no_format_is_refused(dtype: str, low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"not known|no range"):
        PixelFormat(dtype, low, high)
