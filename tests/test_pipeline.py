"""The pipeline: diffusers' pixels, seeds, guidance, folders that go both ways, errors."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import ddpm_hf
from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from tests.networks import TWO_LEVELS

TINY: dict[str, Any] = {**TWO_LEVELS, "sample_size": 8}
CLOSE = 5e-4
"""An eighth of a grey level: float32's rounding, which the first steps divide by sqrt(alpha_bar)."""


def make_unet(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    unet: UNet2DModel = UNet2DModel(**{**TINY, **options}).eval()
    return unet


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ddim() -> Any:
    return quiet(DDPMCustomPipeline(make_unet(), DDIMScheduler()))


@pytest.fixture
def ddpm() -> Any:
    return quiet(DDPMCustomPipeline(make_unet(), DDPMScheduler()))


@pytest.fixture
def conditional() -> Any:
    return quiet(DDPMCustomPipeline(make_unet(num_class_embeds=4), DDIMScheduler()))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"eta": 0.3, "use_clipped_model_output": True}], ids=str)
def test_pixels_of_diffusers_ddim_pipeline(ddim: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    ddim.save_pretrained(tmp_path)
    theirs = quiet(diffusers.DDIMPipeline.from_pretrained(tmp_path))
    results = [p(3, generator(), num_inference_steps=10, output_type="np", **options).images for p in (ddim, theirs)]
    np.testing.assert_allclose(*results, atol=CLOSE)


def test_what_is_saved_again_names_no_folder_of_this_machine(ddim: Any, tmp_path: Path) -> None:
    ddim.save_pretrained(tmp_path / "first")
    DDPMCustomPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for path in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_pixels_of_diffusers_ddpm_pipeline(ddpm: Any, tmp_path: Path) -> None:
    ddpm.save_pretrained(tmp_path)
    theirs = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
    results = [p(3, generator(), num_inference_steps=25, output_type="np").images for p in (ddpm, theirs)]
    np.testing.assert_allclose(*results, atol=CLOSE)
    ours, other = (p(2, generator(), num_inference_steps=25).images[1] for p in (ddpm, theirs))
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(other)).max() <= 1


def test_plain_diffusers_reads_the_folder_where_we_are_not_installed(ddim: Any, ddpm: Any, tmp_path: Path) -> None:
    """In a process in which our package cannot be imported, without a word on stderr; and the pixels are the same."""
    script = (
        "import sys; sys.modules['ddpm_hf'] = None\n"
        "import diffusers, numpy, torch\n"
        f"for name in ('ddpm', 'ddim'):\n"
        f"    pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path)!r} + '/' + name)\n"
        "    assert type(pipe).__module__.startswith('diffusers.'), type(pipe)\n"
        "    assert type(pipe.unet) is diffusers.UNet2DModel\n"
        "    pipe.set_progress_bar_config(disable=True)\n"
        "    images = pipe(2, torch.Generator().manual_seed(7), num_inference_steps=10, output_type='np').images\n"
        f"    numpy.save({str(tmp_path)!r} + f'/{{name}}.npy', images)\n"
        f"diffusers.DDPMPipeline.from_pretrained({str(tmp_path)!r} + '/ddpm')\n"
        f"diffusers.DDPMPipeline.from_pretrained({str(tmp_path)!r} + '/ddim')\n"
    )
    ddpm.save_pretrained(tmp_path / "ddpm")
    ddim.save_pretrained(tmp_path / "ddim")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "ddpm_hf" not in done.stderr
    for name, pipe in (("ddpm", ddpm), ("ddim", ddim)):
        ours = pipe(2, generator(), num_inference_steps=10, output_type="np").images
        np.testing.assert_allclose(ours, np.load(tmp_path / f"{name}.npy"), atol=CLOSE)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_folders_of_diffusers_load_with_our_classes(scheduler: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = diffusers.DDPMPipeline(diffusers.UNet2DModel(**TINY).eval(), diffusers.DDPMScheduler())
    theirs.register_modules(scheduler=getattr(diffusers, scheduler)())
    theirs.save_pretrained(tmp_path)
    ours = DDPMCustomPipeline.from_pretrained(tmp_path)
    assert type(ours.unet) is UNet2DModel
    assert type(ours.scheduler) is getattr(ddpm_hf, scheduler)
    results = [quiet(p)(2, generator(), num_inference_steps=10, output_type="np").images for p in (ours, theirs)]
    np.testing.assert_allclose(*results, atol=CLOSE)


def test_our_folder_comes_back(ddim: Any, tmp_path: Path) -> None:
    ddim.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline"
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert str(tmp_path) not in json.dumps(index)
    again = DDPMCustomPipeline.from_pretrained(tmp_path)
    assert type(again.unet) is UNet2DModel
    again.save_pretrained(tmp_path / "again")  # a loaded pipeline knows its path, and must not tell it
    assert str(tmp_path) not in (tmp_path / "again" / "model_index.json").read_text()
    ours, other = (quiet(p)(2, generator(), num_inference_steps=5, output_type="uint8").images for p in (ddim, again))
    assert (ours.int() - other.int()).abs().max() <= 1


def test_loading_options(ddim: Any, tmp_path: Path) -> None:
    ddim.save_pretrained(tmp_path, variant="ema")
    half = DDPMCustomPipeline.from_pretrained(tmp_path, variant="ema", dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert quiet(half)(num_inference_steps=2, output_type="pt").images.dtype == torch.bfloat16
    other = DDPMCustomPipeline.from_pretrained(tmp_path, variant="ema", scheduler=DDPMScheduler())
    assert type(other.scheduler) is DDPMScheduler


def test_diffusers_parts_are_made_ours_without_a_copy() -> None:
    unet = diffusers.UNet2DModel(**TINY).eval()
    pipe = DDPMCustomPipeline(unet, diffusers.DDIMScheduler())
    assert type(pipe.unet) is UNet2DModel
    assert type(pipe.scheduler) is DDIMScheduler
    assert pipe.unet.conv_in.weight.data_ptr() == unet.conv_in.weight.data_ptr()
    assert not pipe.unet.training
    from_pipe = DDPMCustomPipeline.from_pipe(diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()))
    assert type(from_pipe.unet) is UNet2DModel


def test_other_schedulers_of_diffusers_sample(tmp_path: Path) -> None:
    solver = diffusers.DPMSolverMultistepScheduler.from_config(DDPMScheduler().config)
    pipe = quiet(DDPMCustomPipeline(make_unet(), solver))
    assert pipe(2, generator(), num_inference_steps=5, output_type="pt").images.isfinite().all()
    pipe.save_pretrained(tmp_path)
    assert type(DDPMCustomPipeline.from_pretrained(tmp_path).scheduler) is diffusers.DPMSolverMultistepScheduler


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_its_own_seed_alone(ddim: Any, eta: float) -> None:
    options = {"num_inference_steps": 6, "eta": eta, "output_type": "pt"}
    together = ddim(seeds=[5, 6, 7], **options).images
    assert together.shape == (3, 3, 8, 8)
    for i, seed in enumerate([5, 6, 7]):
        torch.testing.assert_close(ddim(seeds=[seed], **options).images[0], together[i], rtol=0, atol=CLOSE)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_outputs(ddim: Any) -> None:
    run = {"seeds": [1, 2], "num_inference_steps": 2}
    pt, array, pil, u8 = (ddim(output_type=kind, **run).images for kind in ("pt", "np", "pil", "uint8"))
    assert pt.min() >= 0
    assert pt.max() <= 1
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert u8.dtype == torch.uint8
    np.testing.assert_array_equal(np.asarray(pil[0]), u8[0].permute(1, 2, 0).numpy())
    assert torch.equal(u8, (pt * 255).round().to(torch.uint8))
    assert isinstance(ddim(**run, return_dict=False), tuple)


def test_images_that_are_no_pictures_are_refused_before_they_are_drawn() -> None:
    pipe = quiet(DDPMCustomPipeline(make_unet(in_channels=5, out_channels=5), DDIMScheduler()))

    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a step was taken")

    pipe.denoise, denoise = never, pipe.denoise
    with pytest.raises(ValueError, match=r"images with 5 channels are no pictures; .* output_type 'values'"):
        pipe(num_inference_steps=2)
    pipe.denoise = denoise
    assert pipe(num_inference_steps=2, output_type="np").images.shape[3] == 5


def test_steps_and_grids(ddim: Any, ddpm: Any) -> None:
    for pipe, options, expected in [
        (ddim, {}, 50),
        (ddim, {"num_inference_steps": 100, "timestep_spacing": "quadratic"}, 97),
        (ddim, {"timesteps": [900, 30]}, 2),
        (ddpm, {"num_inference_steps": 7}, 7),
    ]:
        pipe(**options)
        assert len(pipe.scheduler.timesteps) == expected
    short = quiet(DDPMCustomPipeline(make_unet(), DDPMScheduler(num_train_timesteps=12)))
    short()
    assert len(short.scheduler.timesteps) == 12


def test_callback_sees_and_changes_every_step(ddim: Any) -> None:
    seen = []

    def callback(pipe: Any, i: int, t: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert pipe is ddim
        seen.append((i, int(t), tensors["pred_original_sample"].abs().max() <= 1))
        return {"sample": torch.zeros_like(tensors["sample"])}

    images = ddim(num_inference_steps=4, output_type="pt", callback_on_step_end=callback).images
    assert seen == [(0, 750, True), (1, 500, True), (2, 250, True), (3, 0, True)]
    assert (images == 0.5).all()


def test_guidance(conditional: Any) -> None:
    """w = 1 is the conditional model, w = 0 the unconditional one, and the output is linear in w: in one step on v."""
    conditional.scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    last: list[torch.Tensor] = []

    def run(scale: float, label: int) -> torch.Tensor:
        conditional(
            seeds=[3], class_labels=label, guidance_scale=scale, timesteps=[500],
            callback_on_step_end=lambda pipe, i, t, tensors: last.append(tensors["pred_original_sample"]),
        )  # fmt: skip
        return last[-1]

    given, without = run(1.0, 2), run(1.0, 3)  # the last class means none
    torch.testing.assert_close(run(0.0, 2), without, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(3.0, 2), without + 3 * (given - without), rtol=1e-4, atol=1e-5)
    assert (given - without).abs().max() > 1e-3


def test_guidance_of_a_model_without_classes_is_warned_of(ddim: Any, caplog: pytest.LogCaptureFixture) -> None:
    guided, plain = (ddim(seeds=[1], guidance_scale=w, num_inference_steps=2, output_type="pt") for w in (7.5, 1.0))
    assert "guidance_scale=7.5 does nothing: this UNet knows no classes" in caplog.text
    assert torch.equal(guided.images, plain.images)


def test_class_labels_are_one_for_all_or_one_each(conditional: Any) -> None:
    options = {"num_inference_steps": 3, "output_type": "pt"}
    each = conditional(seeds=[1, 2], class_labels=[0, 2], **options).images
    torch.testing.assert_close(conditional(seeds=[2], class_labels=2, **options).images[0], each[1], rtol=0, atol=CLOSE)
    assert len(conditional(class_labels=[0, 1, 2], **options).images) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "jpg"}, "output_type='jpg' is not known; use one of pil, np, numpy, pt, uint8"),
        ({"generator": generator(), "seeds": [1]}, "Give either generator or seeds"),
        (
            {"batch_size": 3, "seeds": [1, 2]},
            "The number of images is given as 3 by batch_size, 2 by seeds; make them eq",
        ),
        ({"batch_size": 2, "generator": [generator()]}, "given as 2 by batch_size, 1 by generators"),
        ({"batch_size": 0}, "The number of images is 0; ask for at least one"),
        ({"num_inference_steps": 2000}, "num_inference_steps=2000 cannot be taken of 1000 training steps"),
        ({"num_inference_steps": 5, "timesteps": [3]}, "either num_inference_steps or timesteps"),
        ({"timesteps": [3, 5]}, "timesteps must descend"),
        ({"num_inference_steps": 5, "timestep_spacing": "nope"}, "timestep_spacing='nope' is not known"),
        ({"class_labels": 1}, "class_labels were given to a UNet without classes"),
        ({"eta": 2.0}, "eta=2.0 is outside 0"),
        ({"seeds": 5}, r"seeds=5 must be a list of integers, such as \[0, 1\] or range\(2\)"),
        ({"seeds": "12"}, "seeds='12' must be a list of integers"),
        ({"seeds": np.eye(2)}, "must be a list of integers"),
        ({"seeds": [True]}, "an entry of seeds=True is not one integer"),
        ({"seeds": np.array([0.0])}, "an entry of seeds=0.0 is not one integer"),
        ({"seeds": ["1"]}, "an entry of seeds='1' is not one integer"),
        ({"seeds": [-1]}, r"seeds holds -1; give whole numbers from 0 to 2\*\*64 - 1"),
        ({"seeds": [2**64]}, "seeds holds 18446744073709551616; give whole numbers"),
        ({"seeds": []}, "The number of images is 0; ask for at least one"),
        ({"batch_size": True}, "batch_size=True is not one integer"),
        ({"batch_size": 2.0}, "batch_size=2.0 is not one integer"),
        ({"batch_size": 10**12}, "1000000000000 images of 3 x 8 x 8 need more than .* draw at most"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 cannot be taken of 1000 training steps; use 1 .. 1000"),
        ({"num_inference_steps": 10**9}, "num_inference_steps=1000000000 cannot be taken"),
        ({"num_inference_steps": "10"}, "num_inference_steps='10' is not one integer"),
        ({"num_inference_steps": 2.5}, "num_inference_steps=2.5 is not one integer"),
        ({"timesteps": 3}, "timesteps=3 must be a list of integers"),
        ({"timesteps": [900.5]}, "an entry of timesteps=900.5 is not one integer"),
        ({"num_inference_steps": 5, "timestep_spacing": ""}, "timestep_spacing='' is not known"),
        ({"eta": "1"}, "eta='1' must be a number"),
        ({"eta": math.nan}, "eta=nan must be a number"),
        ({"guidance_scale": math.inf}, "guidance_scale=inf must be from -10000 to 10000"),
        ({"guidance_scale": None}, "guidance_scale=None must be a number"),
        ({"use_clipped_model_output": 2}, "use_clipped_model_output=2 must be true or false or None"),
        ({"output_type": ["pil"]}, r"output_type=\['pil'\] is not known"),
        ({"generator": 0}, "generator=0 must be a torch.Generator, or a list of one per image"),
    ],
)
def test_bad_calls(ddim: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ddim(**options)


@pytest.mark.parametrize("seeds", [[7, 2**63], (7, 2**63), np.array([7, 2**63], np.uint64), [np.int64(7), 2**63]])
def test_seeds_come_in_any_row_of_integers(ddim: Any, seeds: Any) -> None:
    images = ddim(seeds=seeds, num_inference_steps=2, output_type="uint8").images
    for seed, image in zip((7, 2**63), images, strict=True):
        generators = [torch.Generator().manual_seed(seed)]
        alone = ddim(generator=generators, num_inference_steps=2, output_type="uint8").images
        assert (image.int() - alone[0].int()).abs().max() <= 1


def test_seeds_may_be_a_tensor_or_a_range(ddim: Any) -> None:
    as_range, *others = (
        ddim(seeds=seeds, num_inference_steps=2, output_type="uint8").images
        for seeds in (range(3), torch.arange(3), np.arange(3), [0, 1, 2])
    )
    assert all(torch.equal(images, as_range) for images in others)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3, 9], "class_labels holds 9, and this UNet's classes are 0 to"),
        (-1, "class_labels holds -1, and this UNet's classes are 0 to"),
        ([1.5], "an entry of class_labels=1.5 is not one integer"),
        ("1", "class_labels='1' must be a list of integers"),
        (True, "class_labels=True is not one integer"),
        (np.array([]), "The number of images is 0"),
    ],
)
def test_bad_class_labels(conditional: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conditional(class_labels=labels, num_inference_steps=2)


def test_what_a_scheduler_lacks_is_refused(ddpm: Any, conditional: Any) -> None:
    with pytest.raises(ValueError, match=r"DDPMScheduler has no eta, and eta=0.5 was given; use DDIMScheduler"):
        ddpm(eta=0.5, num_inference_steps=2)
    with pytest.raises(ValueError, match="guidance_scale needs class_labels"):
        conditional(guidance_scale=2.0, num_inference_steps=2)
    ddpm.scheduler = diffusers.PNDMScheduler.from_config(ddpm.scheduler.config)
    with pytest.raises(
        ValueError, match=r"PNDMScheduler.set_timesteps does not take num_inference_steps, timestep_spac"
    ):
        ddpm(num_inference_steps=5, timestep_spacing="quadratic")
    with pytest.raises(ValueError, match="the UNet's config has sample_size=None"):
        DDPMCustomPipeline(make_unet(sample_size=None), DDIMScheduler())()


def test_bad_folders(ddim: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give a pipeline's folder, or a Hub id"):
        DDPMCustomPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"runs/nowhere/here does not exist"):
        DDPMCustomPipeline.from_pretrained("runs/nowhere/here")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no model_index.json, so it is not a pipeline's folder"):
        DDPMCustomPipeline.from_pretrained(tmp_path / "empty")
    ddim.save_pretrained(tmp_path / "good")
    with pytest.raises(FileNotFoundError, match=r"it holds a single model, for UNet2DModel.from_pretrained"):
        DDPMCustomPipeline.from_pretrained(tmp_path / "good" / "unet")
    shutil.copytree(tmp_path / "good", tmp_path / "other")
    index = json.loads((tmp_path / "other" / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "other" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"other holds a StableDiffusionPipeline \(scheduler: DDIMScheduler, unet: UNet2D"
    ):
        DDPMCustomPipeline.from_pretrained(tmp_path / "other")


@pytest.fixture
def saved(ddim: Any, tmp_path: Path) -> Path:
    ddim.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "content", ["[]", "7", '"text"', "{", "", '{"unet": 3}', "{}", '{"unet": ["diffusers"]}', "null"]
)
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_json_of_any_other_form_is_one_sentence(saved: Path, file: str, content: str) -> None:
    (saved / file).write_text(content)
    if file == "scheduler/scheduler_config.json" and content.startswith("{") and content != "{":
        return  # all defaults; of keys that it does not know diffusers warns
    with pytest.raises((ValueError, OSError), match=r"model") as raised:
        DDPMCustomPipeline.from_pretrained(saved)
    assert "\n" not in str(raised.value)


def test_pickled_weights_name_the_command_that_makes_safetensors(saved: Path) -> None:
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"ddpm-hf-convert .*model NEW_FOLDER"):
        DDPMCustomPipeline.from_pretrained(saved)


def test_the_only_variant_is_taken_and_said(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = DDPMCustomPipeline.from_pretrained(saved).unet.state_dict()
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (saved / "unet" / "hashes.json").unlink()
    found = DDPMCustomPipeline.from_pretrained(saved).unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert "'fp16' only" in caplog.text
