"""OpenAI's flags as a recipe for train_accelerate.py."""

from pathlib import Path
from typing import Any

import pytest

from ddpm_hf.command_line import parse_config
from tests.conversion_files import refusal, run

MODEL = 'MODEL_FLAGS="--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True"\n'
PROCESS = 'DIFFUSION_FLAGS="--diffusion_steps 4000 --noise_schedule cosine"\n'
IMPROVED = MODEL + PROCESS + 'TRAIN_FLAGS="--lr 1e-4 --batch_size 128 --rescale_learned_sigmas True"'
ADM = "--image_size 64 --learn_sigma True --class_cond True --batch_size 2048 --lr 3e-4 --weight_decay 0.05 "


def recipe(folder: Path, flags: str) -> Any:
    (folder / "flags.txt").write_text(flags)
    run(folder / "flags.txt", folder / "mine.yaml")
    return parse_config(["--config", str(folder / "mine.yaml"), "--data.name=my/images"], folder / "mine.yaml")


def test_improved_diffusions_flags_become_a_recipe(tmp_path: Path) -> None:
    config = recipe(tmp_path, IMPROVED)
    assert (config.data.name, config.data.resolution) == ("my/images", 64)
    assert list(config.model["block_out_channels"]) == [128, 256, 384, 512]
    assert list(config.model["attention_head_dim"]) == [32, 64, 96, 128]
    assert config.model["time_embedding_type"] == "positional"
    assert (config.diffusion["num_train_timesteps"], config.diffusion["variance_type"]) == (4000, "learned_range")
    training = config.training
    assert (training.loss, training.vlb_weight, training.learning_rate, training.batch_size) == (
        *("hybrid", 0.001, 1e-4, 128),
    )
    assert (training.optimizer, training.ema_decay, training.warmup_steps, training.lr_schedule) == (
        *("adam", 0.9999, 0, "constant"),
    )


def test_guided_diffusions_flags_become_a_recipe(tmp_path: Path) -> None:
    config = recipe(tmp_path, ADM + "--lr_anneal_steps 300000 --ema_rate 0.999,0.9999")
    assert config.model["num_class_embeds"] == 1000
    training = config.training
    assert (training.steps, training.lr_schedule, training.vlb_weight) == (300_000, "linear", 0.001)
    assert (training.optimizer, training.weight_decay, training.ema_decay) == ("adamw", 0.05, [0.999, 0.9999])


@pytest.mark.parametrize(
    ("flags", "loss", "weight", "sampling"),
    [
        (IMPROVED.replace("sigmas True", "sigmas False"), "hybrid", 1 / 4000, "uniform"),
        (IMPROVED + " --use_kl True --schedule_sampler loss-second-moment", "kl", 0.001, "importance"),
        ("--image_size 64 --batch_size 8", "simple", 0.001, "uniform"),
    ],
    ids=["not rescaled", "bound", "simple"],
)
def test_losses(tmp_path: Path, flags: str, loss: str, weight: float, sampling: str) -> None:
    training = recipe(tmp_path, flags).training
    assert (training.loss, training.vlb_weight, training.timestep_sampling) == (loss, weight, sampling)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (ADM.replace("--batch_size 2048", ""), "has no --batch_size"),
        (ADM + "--lr high", "has --lr high, and a number is expected"),
        (ADM + "--schedule_sampler best", "has --schedule_sampler best, and uniform, loss-second-moment are known"),
        (MODEL + "--diffusion_steps 4000 --batch_size 8 --rescale_timesteps 1", "no --rescale_learned_sigmas; give it"),
    ],
)
def test_other_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, said: str) -> None:
    (tmp_path / "flags.txt").write_text(flags)
    sentence = refusal(capsys, tmp_path / "flags.txt", tmp_path / "mine.yaml")
    assert sentence.startswith(f"the recipe {tmp_path / 'flags.txt'} ")
    assert said in sentence
