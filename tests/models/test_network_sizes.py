"""The table of networks by the size of their images."""

from typing import Any

import pytest
import torch

from ddpm_hf import UNet2DModel
from ddpm_hf.models.network_sizes import FOLLOWING, SIZES, followed, follows, row_of
from ddpm_hf.settings import constructor_settings

DEFAULTS = vars(constructor_settings("ddpm_hf.models.unet_2d:UNet2DModel")())
OPEN = {**DEFAULTS, **dict.fromkeys(FOLLOWING), "attention_head_dim": 64}


def network(height: int, width: int, channels: int = 3, **settings: Any) -> dict[str, Any]:
    return followed({**OPEN, **settings}, (channels, height, width), is_variance_learned=False)


@pytest.mark.parametrize(
    ("height", "width", "levels", "attention"),
    [
        (64, 64, 4, [False, False, True, True]),
        (32, 32, 4, [False, True, True, True]),
        (256, 256, 6, [False] * 4 + [True] * 2),
        (128, 128, 5, [False] * 3 + [True] * 2),
        (96, 96, 5, [False] * 3 + [True] * 2),  # between two rows, the next: 6 x 6 last
        (48, 64, 4, [False, False, True, True]),
        (16, 16, 3, [False, True, True]),
        (8, 8, 2, [False, True]),
        (28, 28, 3, [False, True, True]),  # 7 x 7 cannot be halved
        (100, 100, 3, [False, False, False]),  # 25 x 25 neither
        (5, 7, 1, [False]),
        (1, 1, 1, [False]),
        (512, 512, 7, [False] * 5 + [True] * 2),
        (32, 128, 4, [False, False, True, True]),  # as many pixels as 64 x 64; 4 x 16 last
        (8, 2000, 4, [False, False, False, True]),
    ],
)
def test_depth_and_attention_follow_the_resolution(height: int, width: int, levels: int, attention: list[bool]) -> None:
    found = network(height, width)
    assert len(found["block_out_channels"]) == levels
    assert [name.startswith("Attn") for name in found["down_block_types"]] == attention
    assert [name.startswith("Attn") for name in found["up_block_types"]] == attention[::-1]
    assert found["sample_size"] == (height if height == width else [height, width])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (64, 48), (100, 100), (7, 5)])
def test_each_network_takes_its_images(height: int, width: int) -> None:
    with torch.device("meta"):
        unet = UNet2DModel(**network(height, width, channels=5))
        assert unet(torch.zeros(2, 5, height, width), torch.zeros(2)).sample.shape == (2, 5, height, width)


@pytest.mark.parametrize("row", SIZES, ids=lambda row: str(row.side))
def test_the_table_grows(row: Any) -> None:
    assert row_of(row.side, row.side) == row
    assert network(row.side, row.side)["block_out_channels"] == [*row.block_out_channels]
    assert list(SIZES) == sorted(SIZES)
    assert all(width % 64 == 0 for width in row.block_out_channels), "groups and heads"


def test_what_is_given_stays() -> None:
    assert not follows(DEFAULTS | {"sample_size": 32})
    given = network(64, 64, block_out_channels=(32, 64), layers_per_block=1, in_channels=1)
    assert given["block_out_channels"] == (32, 64)
    assert (given["layers_per_block"], given["in_channels"], given["out_channels"]) == (1, 1, 1)
    assert given["down_block_types"] == ["DownBlock2D", "DownBlock2D"]  # 32 x 32 is large
    mirrored = network(64, 64, down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"))
    assert mirrored["up_block_types"] == ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    assert mirrored["block_out_channels"] == [64, 128, 256]
    upwards = network(64, 64, up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    assert upwards["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    residual = network(64, 64, down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"))
    assert residual["up_block_types"] == ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    # The row is that of the size that is given, and so is the network; the data are checked against it elsewhere.
    assert network(64, 64, sample_size=32)["block_out_channels"] == [128, 256, 256, 256]


def test_a_learned_variance_doubles_the_outputs() -> None:
    found = followed(OPEN, (4, 32, 32), is_variance_learned=True)
    assert (found["in_channels"], found["out_channels"]) == (4, 8)


def test_patches_count_as_pixels() -> None:
    found = network(128, 64, patch_size=4)
    assert found["sample_size"] == [128, 64]
    assert found["block_out_channels"] == network(32, 16)["block_out_channels"]
    with pytest.raises(ValueError, match=r"130 x 64 pixels, which patch_size 4 .* give images of 128 x 64 or 132 x 64"):
        network(130, 64, patch_size=4)


@pytest.mark.parametrize(
    ("height", "width", "said"),
    [
        (75, 75, r"75 x 75 pixels, too many for sides that can be halved not at all; .* of 72 x 72 or 76 x 76 pixels"),
        (31, 31, r"30 x 30 or 32 x 32"),
        (300, 200, r"halved only twice; give images of 296 x 200 or 304 x 200 pixels"),
        (64, 49, r"64 x 48 or 64 x 50"),
    ],
)
def test_a_size_without_a_network_is_refused_with_sizes_that_have_one(height: int, width: int, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        network(height, width)
    assert "\n" not in str(caught.value)
    sizes = str(caught.value).partition("give images of ")[2].partition(" pixels")[0]
    for size in sizes.split(" or "):
        network(*map(int, size.split(" x ")))


def test_every_size_has_a_network_or_neighbours_that_have() -> None:
    for height in range(1, 200, 3):
        for width in (height, height + 1, 2 * height, 20 * height):
            try:
                network(height, width)
            except ValueError as error:
                for size in str(error).partition("give images of ")[2].partition(" pixels")[0].split(" or "):
                    network(*map(int, size.split(" x ")))
