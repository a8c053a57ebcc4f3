"""A folder of photographs as people have them, with the very command of the README."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image

from tests.runs import ended

ROOT = Path(__file__).parents[2]
SIZES = [(64, 43), (43, 64), (80, 60), (30, 30), (61, 47)]
ENDINGS = [".jpg", ".JPG", ".jpeg", ".JPEG", ".PNG"]
TURNED = 6
"""Orientation of a camera that was held upright."""


def write_photographs(folder: Path, number: int = 20) -> Path:
    """Of several sizes, some of which EXIF data turn, with endings in both cases."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        exif = Image.Exif()
        if i % 4 == 0:
            exif[ExifTags.Base.Orientation] = TURNED
        picture = coarse.resize(SIZES[i % 5], Image.Resampling.BICUBIC)
        picture.save(folder / f"IMG_{i:04d}{ENDINGS[i % 5]}", exif=exif)
    (folder / "Thumbs.db").write_bytes(b"\0")
    return folder


def commands() -> list[list[str]]:
    """Those of the README, as words."""
    block = re.search(r"<!-- your own images -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


def test_photographs_train_a_network_of_their_size(tmp_path: Path) -> None:
    """The command of the README, with a few steps of a narrow network."""
    train, draw = commands()
    assert train[:3] == ["accelerate", "launch", "train_accelerate.py"]
    words = [str(write_photographs(tmp_path / "photos")) if word == "my/photos" else word for word in train[3:]]
    small = ["--model.attention_head_dim", "8", "--training.steps", "2", "--training.batch_size", "4"]
    run = tmp_path / "run"
    status, said = ended(run, *words, *small, "--quiet", "false")
    assert status == 0, said
    first, second, third = said.splitlines()[:3]
    assert first.startswith("The recipe is ")
    assert second.startswith(f"{tmp_path / 'photos'}: 20 images of 3 x 64 x 64; not read: 1 .db; the images have ")
    # (64, 43) turned is (43, 64), and so on: 43x64 64x43 60x80 80x60 30x30 47x61 61x47
    assert (
        "have 7 sizes, from 30 x 30 to 80 x 60 (height x width), cut to their middle and brought to 64 x 64" in second
    )
    assert re.match(r"UNet2DModel with [\d,]+ parameters, sample_size, in_channels, .* as the images have it; 2", third)
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert (kept["model"]["in_channels"], kept["model"]["sample_size"]) == (3, 64)
    assert None not in [kept["model"][name] for name in ("block_out_channels", "down_block_types", "layers_per_block")]
    assert draw[:3] == ["ddpm-hf-sample", "--model", "runs/photos"]
    assert yaml.safe_load((ROOT / "configs" / "train" / "photos.yaml").read_text())["output_dir"] == "runs/photos"


@pytest.mark.slow
def test_the_commands_of_the_readme_work_as_they_stand(tmp_path: Path) -> None:
    """With the network that they choose; only the steps are fewer."""
    write_photographs(tmp_path / "my" / "photos")
    few = ["--training.steps", "2", "--training.batch_size", "2"]
    few += ["--evaluation.num_images", "2", "--evaluation.num_inference_steps", "2"]
    train, draw = commands()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(ROOT / train[2]), *train[3:], *few]
    draw[draw.index("--num_images") + 1], draw[draw.index("--num_inference_steps") + 1] = "2", "2"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    for command in (launch, [sys.executable, "-m", "ddpm_hf.cli.sample", *draw[1:]]):
        done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "pictures" / "grid.png") as grid:
        assert grid.size == (129, 64)
