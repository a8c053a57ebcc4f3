"""Training with Karras et al.'s augmentation: resumed to the bit, the same on any processes, saved without a trace."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.data.augmentation import Augmentation
from ddpm_hf.data.batches import Batches
from ddpm_hf.data.sources import ImageData
from ddpm_hf.diffusion.losses import training_loss
from ddpm_hf.diffusion.timestep_sampling import TimestepSampler
from ddpm_hf.files import sealed
from ddpm_hf.models.unet_2d import TRAINING_ONLY
from ddpm_hf.sampling.denoising import SamplingOptions, network_of, sample_images
from ddpm_hf.training.ema import EMA
from tests.networks import TWO_LEVELS
from tests.runs import Started, ended, finished, log_of, measured, tensors_of

STEPS = 20
WORK = [
    *("--training.steps", STEPS, "--training.checkpoint_every", 7, "--training.ema_decay", "[0.99,0.5]"),
    *("--data.augment_probability", "0.5", "--data.random_flip", "true", "--data.random_flip_vertical", "true"),
    *("--data.random_rotation", "true", "--training.log_every", 1),
]
SLOW = [pytest.param(1, 4, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)]
LAYER = f"{TRAINING_ONLY}weight"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("unbroken") / "run", *WORK)


def network(**settings: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **{**TWO_LEVELS, **settings}).eval()


# The layer.


@pytest.mark.parametrize("settings", [{}, {"time_embedding_type": "fourier"}, {"num_class_embeds": 3}], ids=str)
def test_labels_of_zero_or_none_change_no_bit_and_others_do(settings: dict[str, Any]) -> None:
    unet = network(**settings)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 500])
    classes = torch.tensor([0, 1]) if "num_class_embeds" in settings else None
    with torch.no_grad():
        before = unet(x, t, classes).sample
        unet.add_augment_embedding(9)
        assert torch.equal(unet(x, t, classes).sample, before)
        assert torch.equal(unet(x, t, classes, augment_labels=torch.zeros(2, 9)).sample, before)
        one = torch.zeros(2, 9)
        one[1, 4] = 1
        after = unet(x, t, classes, augment_labels=one).sample
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.01 * before[1].abs().max()


def test_the_other_weights_begin_as_without_it() -> None:
    plain, augmented = network(), network()
    augmented.add_augment_embedding(9)
    weights = augmented.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in plain.state_dict().items())
    assert weights.keys() - plain.state_dict().keys() == {LAYER}
    assert augmented.config == plain.config


def test_labels_that_do_not_fit_are_refused_in_one_sentence() -> None:
    unet, x = network(), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="augment_labels were given to a UNet without add_augment_embedding"):
        unet(x, 0, augment_labels=torch.zeros(2, 9))
    unet.add_augment_embedding(9)
    with pytest.raises(ValueError, match=r"augment_labels are of shape \(1, 9\) and must be of \(2, 9\)"):
        unet(x, 0, augment_labels=torch.zeros(1, 9))


@pytest.mark.slow
def test_a_compiled_network_takes_labels_in_training_and_none_for_samples() -> None:
    x, t, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 10, 999]), torch.eye(4, 9)
    found = []
    for is_compiled in (False, True):
        unet = network(layers_per_block=1)
        unet.add_augment_embedding(9)
        if is_compiled:
            unet.compile(backend="aot_eager")  # the graphs are what is in question, not their code
        for given in (labels, None):
            output = unet(x, t, augment_labels=given).sample
            output.square().mean().backward()
            found.append(output.detach())
        assert unet.augment_embedding.weight.grad.abs().min(dim=0).values[:4].min() > 0
    for plain, compiled in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_augmentation_does_not_leak() -> None:
    """Of a letter L in all forms it draws the upright one where it is told of the forms, and all where it is not."""
    told, untold = upright_share(is_told=True), upright_share(is_told=False)
    assert told >= 0.95
    assert untold < 0.6


def upright_share(is_told: bool) -> float:
    """The share of samples like the upright letter, of a small network trained with a probability of 1/2."""
    letter = torch.zeros(1, 8, 8)
    letter[:, 1:7, 1:3] = letter[:, 5:7, 1:6] = 1
    brightness = 150 + 100 * torch.rand(64, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    data = ImageData("L", (letter * brightness).to(torch.uint8), None)
    unet = network(layers_per_block=1, block_out_channels=(16, 32)).train()
    unet.add_augment_embedding(9)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    batches = Batches(
        data, 64, TimestepSampler(1000), 0, Accelerator(cpu=True), augmentation=Augmentation(probability=0.5)
    )
    optimizer, ema = torch.optim.Adam(unet.parameters(), lr=2e-3, betas=(0.9, 0.99)), EMA(unet.parameters(), [0.99])
    denoiser, steps = scheduler.denoiser.without_restriction(), 300
    for step, (batch,) in batches.of_steps(0, steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        x_t = scheduler.diffusion.q_sample(batch.x_0, batch.t, batch.noise)
        output = denoiser.of(network_of(unet, batch.augment_labels if is_told else None)).output(x_t, batch.t)
        training_loss(denoiser, output, batch.x_0, batch.noise, batch.t).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    sampler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    sampler.set_timesteps(20)
    with ema.averaged_weights():
        samples = sample_images(unet.eval(), sampler, range(64), SamplingOptions(eta=1.0)).float()
    pairs = torch.cat([letter.flatten()[None], samples.flatten(1)]).corrcoef()[0, 1:]
    return float((pairs > 0.9).float().mean())


# Runs.


def test_a_run_trains_the_layer_and_its_averages(unbroken: Path) -> None:
    folder = unbroken / "checkpoints" / f"step-{STEPS}" / "training"
    earlier = load_file(unbroken / "checkpoints" / "step-7" / "training" / "weights.safetensors")
    weights, averages = load_file(folder / "weights.safetensors"), load_file(folder / "averages.safetensors")
    assert averages.keys() == {f"0.99/{LAYER}", f"0.5/{LAYER}"}
    assert (weights[LAYER] != earlier[LAYER]).all()  # each label was there, and no gradient is left out
    assert not torch.equal(averages[f"0.99/{LAYER}"], averages[f"0.5/{LAYER}"])
    assert f"{LAYER}/momentum" in load_file(folder / "optimizer.safetensors")


def test_killed_and_resumed_it_is_the_same_run_to_the_bit(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (8, 15):
        started = Started(WORK, run)
        started.wait_for_step(step)
        started.send(signal.SIGKILL)
        assert started.wait() == [-signal.SIGKILL]
    finished(run, *WORK)
    mine, theirs = tensors_of(run, STEPS), tensors_of(unbroken, STEPS)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert measured(run) == measured(unbroken)


@pytest.mark.parametrize(("processes", "passes"), [(2, 2), *SLOW])
def test_any_cut_of_the_batch_gives_the_same_curve(unbroken: Path, tmp_path: Path, processes: int, passes: int) -> None:
    cut = finished(tmp_path / "cut", *WORK, "--training.gradient_accumulation_steps", passes, processes=processes)
    losses = [[line["loss"] for line in log_of(run)] for run in (cut, unbroken)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_gradient_checkpointing_goes_with_it(unbroken: Path, tmp_path: Path) -> None:
    run = finished(tmp_path / "run", *WORK, "--training.gradient_checkpointing", "true")
    losses = [[line["loss"] for line in log_of(one)] for one in (run, unbroken)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_plain_diffusers_loads_what_is_saved_and_computes_the_same(unbroken: Path) -> None:
    checkpoint = unbroken / "checkpoints" / f"step-{STEPS}"
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 10, 999])
    for folder in (unbroken, checkpoint):
        ours = DDPMCustomPipeline.from_pretrained(folder).unet
        theirs, info = diffusers.UNet2DModel.from_pretrained(folder / "unet", output_loading_info=True)
        assert not any(info.values())
        assert ours.augment_embedding is None
        with torch.no_grad():
            expected = ours(x, t).sample
            torch.testing.assert_close(theirs(x, t).sample, expected, rtol=1e-4, atol=1e-5)
            # With the layer of the training and labels of zero it is the same function.
            ours.add_augment_embedding(9)
            layer = load_file(checkpoint / "training" / "averages.safetensors")[f"0.99/{LAYER}"]
            ours.augment_embedding.weight.copy_(layer)
            assert torch.equal(ours(x, t, augment_labels=torch.zeros(3, 9)).sample, expected)
    images = diffusers.DDPMPipeline.from_pretrained(unbroken)(num_inference_steps=2, batch_size=2).images
    assert [image.size for image in images] == [(8, 8)] * 2


def test_only_training_sees_it(unbroken: Path, tmp_path: Path) -> None:
    """A run that looks at held-out images and scores learns the same, and sees them as they are."""
    looks = ["--evaluation.held_out_split", "test", "--evaluation.loss_every", 10, "--evaluation.extractor", "digits"]
    looking = finished(tmp_path / "run", *WORK, *looks)
    expected, found = tensors_of(unbroken, STEPS), tensors_of(looking, STEPS)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert [line["step"] for line in log_of(looking) if "held_out_loss" in line] == [10, 20]


def test_another_augmentation_is_another_run(unbroken: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    status, said = ended(run, *WORK, "--data.augment_probability", "0.4", "--data.random_rotation", "false")
    assert status == 2
    assert "data.random_rotation True -> False, data.augment_probability 0.5 -> 0.4" in said


def test_a_run_of_a_version_without_these_settings_goes_on(tmp_path: Path) -> None:
    """A setting that a checkpoint does not know counts as its default."""
    arguments = ["--training.lr_schedule", "constant"]
    run = finished(tmp_path / "run", *arguments, "--training.steps", 2)
    state = run / "checkpoints" / "step-2" / "training" / "state.json"
    content = json.loads(state.read_text())
    for name in ("random_crop", "random_flip_vertical", "random_rotation", "augment_probability"):
        del content["record"]["config"]["data"][name]
    state.write_text(json.dumps(sealed(content)))
    goes_on = finished(run, *arguments, "--training.steps", 4)
    assert [line["step"] for line in log_of(goes_on)][-1] == 4
    assert json.loads((run / "metrics.json").read_text())["history"][0]["settings"].keys() == {"training.steps"}
    status, said = ended(run, *arguments, "--training.steps", 6, "--data.random_flip_vertical", "true")
    assert (status, "data.random_flip_vertical False -> True" in said) == (2, True)


def test_random_windows_are_trained_on_and_drawn(tmp_path: Path) -> None:
    """The network follows their size, and real images are compared by their middles."""
    crop = ["--data.random_crop", 4, "--model.sample_size", "null", "--evaluation.extractor", "null"]
    run = finished(tmp_path / "run", *crop, "--training.steps", 2)
    assert DDPMCustomPipeline.from_pretrained(run).unet.config.sample_size == 4
    status, said = ended(tmp_path / "other", *crop, "--model.sample_size", 8)
    assert (status, "are 4 x 4 and model.sample_size is 8" in said) == (2, True)


def test_quarter_turns_of_rectangles_are_refused(tmp_path: Path) -> None:
    crop = ["--data.random_crop", "[4,8]", "--model.sample_size", "[4,8]", "--evaluation.extractor", "null"]
    status, said = ended(tmp_path / "run", *crop, "--data.random_rotation", "true")
    assert (status, said.count("\n")) == (2, 1)
    assert "data.random_rotation turns images by quarters, and those of 'digits' are 4 x 8" in said
