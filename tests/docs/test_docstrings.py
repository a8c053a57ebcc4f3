"""The examples in docstrings run, and the public entry points have one."""

import doctest
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name, walk_packages

import pytest

import ddpm_hf
from tests.docs.stand_ins import fill, make_small

NAMES = [module.name for module in walk_packages(ddpm_hf.__path__, "ddpm_hf.")]
FILES = {name: Path(find_spec(name).origin) for name in NAMES}  # type: ignore[union-attr, arg-type]
WITH_EXAMPLES = [name for name, file in FILES.items() if ">>> " in file.read_text()]
ENTRY_POINTS = [
    "ddpm_hf.notebook",
    "ddpm_hf.pipeline:DDPMCustomPipeline",
    "ddpm_hf.models.unet_2d:UNet2DModel",
    "ddpm_hf.schedulers.ddpm:DDPMScheduler",
    "ddpm_hf.schedulers.ddim:DDIMScheduler",
    "ddpm_hf.diffusion.process:GaussianDiffusion",
    "ddpm_hf.diffusion.denoiser:Denoiser",
    "ddpm_hf.sampling.denoising:sample_images",
    "ddpm_hf.sampling.pictures:denoising_path",
    "ddpm_hf.data.sources:ImageData",
    "ddpm_hf.data.sources:load_cached_images",
    "ddpm_hf.data.augmentation:Augmentation",
    "ddpm_hf.pixels:PixelFormat",
    "ddpm_hf.metrics.base:ImageMetric",
    "ddpm_hf.metrics.frechet:FrechetDistance",
    "ddpm_hf.metrics.bits_per_dim:bits_per_dim",
    "ddpm_hf.training.ema:EMA",
]


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    make_small(monkeypatch, tmp_path)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_an_example_that_is_run(name: str) -> None:
    place = resolve_name(name)
    examples = doctest.DocTestParser().get_examples(place.__doc__)
    assert any(doctest.SKIP not in example.options for example in examples)
