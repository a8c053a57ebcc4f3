"""The parts of a training step: what goes together, the learning rate."""

import math
from typing import Any

import pytest
import torch

from ddpm_hf import DDPMScheduler
from ddpm_hf.data.sources import ImageData
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.training.optimization import check_fit, learning_rate
from ddpm_hf.training.settings import TrainingConfig


@pytest.fixture
def data(rng: torch.Generator) -> ImageData:
    images = torch.randint(256, (50, 3, 4, 6), generator=rng, dtype=torch.uint8)
    return ImageData("noise", images, torch.arange(50))


def test_the_learning_rate_warms_up_and_follows_its_schedule() -> None:
    def rates(schedule: Any) -> list[float]:
        config = TrainingConfig(steps=30, warmup_steps=10, learning_rate=2.0, lr_schedule=schedule)
        return [learning_rate(step, config) for step in range(30)]

    for schedule in ("constant", "cosine", "linear"):
        assert rates(schedule)[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
        assert rates(schedule)[10] == 2.0
    assert rates("constant")[10:] == [2.0] * 20
    assert rates("linear")[10:] == pytest.approx([2.0 * (1 - k / 20) for k in range(20)])
    assert rates("cosine")[10:] == pytest.approx([1 + math.cos(math.pi * k / 20) for k in range(20)])


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert learning_rate(0, TrainingConfig(warmup_steps=0, learning_rate=3.0)) == 3.0


def tiny_unet(**settings: Any) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": (4, 6), "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DModel(**{**blocks, **sizes, **settings})


def test_what_goes_together_passes(data: ImageData) -> None:
    check_fit(data, tiny_unet(), DDPMScheduler(), TrainingConfig())
    learned = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    check_fit(data, tiny_unet(**learned), DDPMScheduler(), TrainingConfig())
    check_fit(data, tiny_unet(num_class_embeds=50), DDPMScheduler(), TrainingConfig())
    check_fit(data, tiny_unet(num_class_embeds=51), DDPMScheduler(), TrainingConfig(label_dropout=0.1))


@pytest.mark.parametrize(
    ("model", "diffusion", "training", "said"),
    [
        ({"in_channels": 1}, {}, {}, "give --model.in_channels 3 --model.out_channels 3"),
        ({"sample_size": None}, {}, {}, r"are 4 x 6 and model.sample_size is None; give --model.sample_size \[4,6\]"),
        ({"sample_size": 4}, {}, {}, r"are 4 x 6 and model.sample_size is 4; give --model.sample_size \[4,6\]"),
        ({"num_class_embeds": 49}, {}, {}, "labels up to 49 and model.num_class_embeds is 49; make it 50 or more"),
        ({}, {"variance_type": "learned_range"}, {}, "--model.out_channels 6, twice as many out for .* learned_range"),
        ({"out_channels": 6}, {}, {}, "3 in and 6 out; give --model.in_channels 3 --model.out_channels 3, or null"),
        ({"out_channels": 6}, {"variance_type": "learned"}, {}, "'learned' learns nothing from loss='simple'"),
        ({}, {}, {"loss": "hybrid"}, "loss='hybrid' adds nothing to 'simple' with variance_type='fixed_small'"),
        ({}, {}, {"loss": "kl", "loss_weighting": "p2"}, "weighting='p2' does not go with loss='kl'"),
        ({}, {"variance_type": "large"}, {}, "variance_type='large' is not known; use one of fixed_small"),
        ({}, {"prediction_type": "posterior_mean"}, {"loss_weighting": "p2"}, "weighting='p2' is defined for epsilon"),
        (
            {},
            {"rescale_betas_zero_snr": True},
            {},
            "'epsilon', which says nothing about the image at the last timestep",
        ),
        ({}, {"beta_schedule": "jsd"}, {}, "'epsilon', which says nothing about the image at the last timestep"),
        ({}, {}, {"label_dropout": 0.1}, "needs model.num_class_embeds of 51 or more, the last for .*; it is None"),
        ({"num_class_embeds": 50}, {}, {"label_dropout": 0.1}, "needs model.num_class_embeds of 51 or more"),
        ({}, {"prediction_type": "score"}, {}, "score"),
        ({}, {"prediction_type": "posterior_mean"}, {"loss_weighting": "min_snr"}, "min_snr"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(
    data: ImageData, model: dict[str, Any], diffusion: dict[str, Any], training: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_fit(data, tiny_unet(**model), DDPMScheduler(**diffusion), TrainingConfig(**training))


def test_a_conditional_network_needs_labels(data: ImageData) -> None:
    without = ImageData("noise", data.images, None)
    with pytest.raises(
        ValueError, match=r"'noise' has no labels; give data.label_column where .*, or set that to null"
    ):
        check_fit(without, tiny_unet(num_class_embeds=50), DDPMScheduler(), TrainingConfig())
