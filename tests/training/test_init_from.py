"""Runs that start from a model: with exactly its weights, or with a sentence that says why not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf import DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.command_line import parse_config
from ddpm_hf.manifest import weights_hash
from ddpm_hf.training import base_model, setup
from ddpm_hf.training.publish import model_push
from ddpm_hf.training.report import described
from ddpm_hf.training.setup import Setup
from tests.networks import TWO_LEVELS
from tests.runs import ended, finished, measured, start_processes_of, tensors_of

EPSILON = {"beta_schedule": "linear", "prediction_type": "epsilon"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def saved(folder: Path, process: dict[str, Any] = COSINE, **model: Any) -> Path:
    """A pipeline of this package with random weights."""
    torch.manual_seed(5)
    unet = UNet2DModel(**{"sample_size": 8, "in_channels": 1, "out_channels": 1, **TWO_LEVELS, **model})
    DDPMCustomPipeline(unet, DDPMScheduler(**process)).save_pretrained(folder)
    return folder


def of_diffusers(folder: Path, **options: Any) -> Path:
    torch.manual_seed(6)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=2, **TWO_LEVELS)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder, **options)
    return folder


def in_half_precision(folder: Path) -> Path:
    torch.manual_seed(6)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TWO_LEVELS).half()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder, variant="fp16")
    return folder


def in_shards(folder: Path) -> Path:
    of_diffusers(folder)
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    return folder


OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def of_old_names(folder: Path) -> Path:
    """With all files side by side and the attention's names of diffusers before 0.18, as google/ddpm-cifar10-32."""
    of_diffusers(folder)
    for file in (*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()):
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = {}
    for name, tensor in load_file(weights).items():
        for new, old in OLD.items():
            name = name.replace(new, old)
        tensors[name] = tensor.clone()
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "ours": saved,
    "diffusers'": of_diffusers,
    "half": in_half_precision,
    "shards": in_shards,
    "old names": of_old_names,
}


def weights_in(folder: Path) -> dict[str, Tensor]:
    """The tensors of its files, under the names of today."""
    found = {}
    for file in folder.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            for new, old in OLD.items():
                name = name.replace(old, new)
            found[name] = tensor.float()
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A recipe that says nothing of network and process."""
    path = tmp_path / "bare.yaml"
    path.write_text("training: {steps: 4, batch_size: 16}\nevaluation: {num_images: 4, num_inference_steps: 2}\n")
    return path


def built(recipe: Path, *arguments: object) -> Setup:
    words = ["--threads", 1, "--output_dir", recipe.with_name("run"), "--evaluation.timestep_spacing", "trailing"]
    return setup.build(parse_config([*map(str, words), *map(str, arguments)], recipe), Accelerator(cpu=True))


def refused(recipe: Path, *arguments: object) -> str:
    with pytest.raises(ValueError, match=r".+") as refusal:
        built(recipe, *arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_run_starts_with_the_very_weights_and_its_averages_too(tmp_path: Path, bare: Path, kind: str) -> None:
    base = FOLDERS[kind](tmp_path / "base")
    start = built(bare, "--init_from", base, "--training.ema_decay", "[0.99,0.5]")
    weights = weights_in(base)
    names = [name for name, _ in start.state.unet.named_parameters()]
    assert set(names) == weights.keys()
    for tensors in (start.state.unet.parameters(), *start.state.ema.averages.values()):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in zip(names, tensors, strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in start.state.unet.parameters())
    count = sum(tensor.numel() for tensor in weights.values())
    assert f"starting from {base}: {count:,} of {count:,} weights are its" in described(start)
    assert not start.notes


def test_settings_that_are_not_given_are_those_of_the_model(tmp_path: Path, bare: Path) -> None:
    process = {**EPSILON, "beta_schedule": "sigmoid", "num_train_timesteps": 500, "clip_sample": False}
    network = {"norm_eps": 1e-6, "dropout": 0.25, "layers_per_block": 1, "flip_sin_to_cos": False}
    base = saved(tmp_path / "base", process, **network)
    start = built(bare, "--init_from", base)
    assert dict(start.state.unet.config).items() >= {**network, "block_out_channels": (8, 16)}.items()
    assert start.config.model["up_block_types"] == ("AttnUpBlock2D", "UpBlock2D")
    assert dict(start.scheduler.config).items() >= process.items()
    assert start.config.diffusion["trained_betas"] is None
    assert not start.notes
    # What came of it is a recipe that gives the same again, without looking at what is given.
    recipe = tmp_path / "again.yaml"
    recipe.write_text(start.config.to_yaml())
    again = built(recipe)
    assert again.config == replace(start.config, output_dir=again.config.output_dir)
    assert weights_hash(again.state.unet) == weights_hash(start.state.unet)


def test_what_learns_of_augmentation_is_no_layer_of_the_model(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base")
    start = built(bare, "--init_from", base, "--data.augment_probability", 0.2)
    count = sum(tensor.numel() for tensor in weights_in(base).values())
    assert start.state.unet.augment_embedding is not None
    assert f"starting from {base}: {count:,} of {count:,} weights are its" in described(start)
    assert torch.equal(output_of(start.state.unet), output_of(DDPMCustomPipeline.from_pretrained(base).unet))


def test_a_noise_schedule_that_is_given_wins_over_betas_of_the_model(tmp_path: Path, bare: Path) -> None:
    process = {"num_train_timesteps": 20, "trained_betas": [0.01 + 0.01 * i for i in range(20)]}
    base = saved(tmp_path / "base", process)
    assert built(bare, "--init_from", base).config.diffusion["trained_betas"] == process["trained_betas"]
    other = built(bare, "--init_from", base, "--diffusion.beta_schedule", "squaredcos_cap_v2")
    assert other.config.diffusion["trained_betas"] is None
    assert "was trained with another process (beta_schedule 'linear', now 'squaredcos_cap_v2'; trained_betas" in (
        " ".join(other.notes)
    )


def test_another_process_is_said(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base", EPSILON)
    of_samples = ["--diffusion.variance_type", "fixed_large", "--diffusion.clip_sample", "false"]
    start = built(bare, "--init_from", base, "--diffusion.prediction_type", "v_prediction", *of_samples)
    [note] = start.notes
    assert "another process (prediction_type 'epsilon', now 'v_prediction'), so at first" in note
    assert start.scheduler.config.beta_schedule == "linear"
    assert weights_hash(start.state.unet) == start.environment["base_model"]["weights_sha256"]


def test_images_of_another_size(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base")
    start = built(bare, "--init_from", base, "--data.resolution", 16)
    assert start.state.unet.config.sample_size == 16
    assert weights_hash(start.state.unet) == start.environment["base_model"]["weights_sha256"]


OTHER_NETWORKS = {
    "wider": (
        ["--model.block_out_channels", "[8,32]"],
        [
            "model.block_out_channels is [8, 32] here and [8, 16] there",
            "72 of 104 layers do not fit (",
            ", and 69 more)",
        ],
    ),
    "shallower": (
        ["--model.layers_per_block", 1],
        ["model.layers_per_block is 1 here and 2 there", "layer(s) of it have no place here (down_blocks.0.resnets.1"],
    ),
    "of other groups, with the same shapes": (
        ["--model.norm_num_groups", 8],
        ["model.norm_num_groups is 8 here and 4 there; leave out"],
    ),
    "of a learned variance": (
        ["--diffusion.variance_type", "learned", "--model.out_channels", 2, "--training.loss", "hybrid"],
        ["model.out_channels is 2 here and 1 there", "conv_out: 2 x 8 x 3 x 3 here, 1 x 8 x 3 x 3 there"],
    ),
    "of other classes": (
        ["--model.num_class_embeds", 12],
        ["1 of", "layers do not fit (class_embedding: 12 x 32 here, 11 x 32 there)"],
    ),
}


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_what_does_not_fit_is_named_or_starts_anew(tmp_path: Path, bare: Path, name: str) -> None:
    arguments, said = OTHER_NETWORKS[name]
    base = saved(tmp_path / "base", num_class_embeds=11 if "classes" in name else None)
    sentence = refused(bare, "--init_from", base, *arguments)
    assert sentence.startswith(f"--init_from {base} is another network: ")
    assert all(part in sentence for part in said), sentence
    assert "--init_partial" in sentence

    start = built(bare, "--init_from", base, "--init_partial", *arguments)
    weights, record = weights_in(base), start.environment["base_model"]
    recipe = tmp_path / "random.yaml"
    random_start = replace(start.config, init_from=None, init_partial=False)
    recipe.write_text(random_start.to_yaml())
    random = built(recipe).state.unet.state_dict()
    kept = 0
    for key, tensor in start.state.unet.state_dict().items():
        if key.rpartition(".")[0] not in record["layers_made_anew"]:
            assert torch.equal(tensor, weights[key])
            kept += tensor.numel()
        elif key != "class_embedding.weight":
            assert torch.equal(tensor, random[key])
    assert kept == record["weights_kept"] > 0
    assert start.notes[0].startswith(f"{base} is another network: ")
    assert f"; {kept:,} of " in start.notes[0]
    if "shallower" in name:
        assert "down_blocks.0.resnets.1.conv1" in record["layers_left_out"]
    else:
        assert not record["layers_left_out"]


def test_settings_in_other_words_are_no_other_network(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base", attention_head_dim=16)  # one head, where attention is
    words = ["--model.attention_head_dim", "null", "--model.act_fn", "swish", "--model.time_embedding_dim", 32]
    blocks = ["--model.down_block_types", '["UNetResDownBlock2D","AttnDownBlock2D"]']
    start = built(bare, "--init_from", base, *words, *blocks, "--model.downsample_type", "conv")
    assert torch.equal(output_of(start.state.unet), output_of(DDPMCustomPipeline.from_pretrained(base).unet))
    two_heads = refused(bare, "--init_from", base, "--model.attention_head_dim", 8)
    assert "is another network: model.attention_head_dim is 8 here and 16 there; leave out" in two_heads


def test_images_of_other_channels(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base", in_channels=3, out_channels=3)
    sentence = refused(bare, "--init_from", base)
    assert sentence.startswith(
        f"the images have 1 channel(s) and {base} has 3; give --data.channels 3, or --init_partial"
    )
    assert built(bare, "--init_from", base, "--data.channels", 3).environment["base_model"]["layers_made_anew"] == []
    start = built(bare, "--init_from", base, "--init_partial")
    assert start.environment["base_model"]["layers_made_anew"] == ["conv_in", "conv_out"]
    assert (start.state.unet.config.in_channels, start.state.unet.config.out_channels) == (1, 1)
    given = refused(bare, "--init_from", base, "--model.in_channels", 1, "--model.out_channels", 1)
    assert "model.in_channels is 1 here and 3 there" in given
    assert "2 of 104 layers do not fit (conv_in: 8 x 1 x 3 x 3 here, 8 x 3 x 3 x 3 there, conv_out" in given


def output_of(unet: UNet2DModel, labels: Tensor | None = None) -> Tensor:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output: Tensor = unet.eval()(x, torch.tensor([3, 500, 999]), labels).sample
    return output


@pytest.mark.parametrize("kind", ["null", "timestep"])
def test_a_network_that_learns_classes_begins_as_the_one_without(tmp_path: Path, bare: Path, kind: str) -> None:
    base = saved(tmp_path / "base")
    classes = ["--model.num_class_embeds", 11, "--training.label_dropout", "0.1", "--model.class_embed_type", kind]
    start = built(bare, "--init_from", base, *classes)
    unconditional = DDPMCustomPipeline.from_pretrained(base).unet
    assert torch.equal(output_of(start.state.unet, torch.tensor([0, 4, 10])), output_of(unconditional))
    [note] = start.notes
    assert "each class starts at zero, so that the network begins as the base" in note
    # And it can learn them: a step's gradient reaches what the classes pass through.
    output = start.state.unet(torch.randn(2, 1, 8, 8), torch.tensor([5, 9]), torch.tensor([1, 2])).sample
    output.square().sum().backward()
    gradients = [p.grad for name, p in start.state.unet.named_parameters() if name.startswith("class_embedding")]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_classes_can_be_left_out(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base", num_class_embeds=10)
    sentence = refused(bare, "--init_from", base, "--model.num_class_embeds", "null")
    assert "1 layer(s) of it have no place here (class_embedding)" in sentence
    start = built(bare, "--init_from", base, "--model.num_class_embeds", "null", "--init_partial")
    assert start.environment["base_model"]["layers_left_out"] == ["class_embedding"]
    weights = weights_in(base)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in start.state.unet.state_dict().items())


def test_other_classes_start_with_the_mean_of_the_old(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base", num_class_embeds=11)
    start = built(bare, "--init_from", base, "--model.num_class_embeds", 12, "--init_partial")
    mean = weights_in(base)["class_embedding.weight"].mean(dim=0)
    assert all(torch.equal(row, mean) for row in start.state.unet.class_embedding.weight)
    assert "each class starts with the mean of all its vectors" in start.notes[1]


def test_a_network_of_which_nothing_fits(tmp_path: Path, bare: Path) -> None:
    base = saved(tmp_path / "base")
    other = ["--model.block_out_channels", "[20,20]", "--model.time_embedding_dim", 20, "--model.norm_num_groups", 4]
    other += ["--init_partial", "--model.in_channels", 1, "--data.channels", 1]
    start_anew = refused(bare, "--init_from", base, *other, "--model.out_channels", 2, *LEARNED)
    assert start_anew == f"--init_from {base} has no layer that fits this network; give settings more like its"


LEARNED = ["--diffusion.variance_type", "learned", "--training.loss", "hybrid"]


def damaged(folder: Path) -> Path:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    return folder


def cut(folder: Path) -> Path:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def pickled(folder: Path) -> Path:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    return folder


def without_index(folder: Path) -> Path:
    (folder / "model_index.json").unlink()
    return folder


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "damaged": (lambda folder: damaged(saved(folder)), "is damaged: its hash is not the one kept in hashes.json"),
    "cut": (lambda folder: cut(of_diffusers(folder)), "cannot be loaded as a pipeline"),
    "pickled": (lambda folder: pickled(of_diffusers(folder)), "is pickled, which can hold code and is not read"),
    "no pipeline": (lambda folder: without_index(saved(folder)), "has no model_index.json"),
    "not there": (lambda folder: folder, "does not exist"),
    "a long name": (lambda folder: folder.with_name("x" * 300), "name too long"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_read_is_named(tmp_path: Path, bare: Path, name: str) -> None:
    make, said = BROKEN[name]
    base = make(tmp_path / "base")
    sentence = refused(bare, "--init_from", base)
    assert sentence.startswith(f"--init_from {base}: ")
    assert said in sentence
    assert not (tmp_path / "run").exists()


def load_in_each_process(base: str, folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    found = base_model.load_base_model(base, accelerator)
    Path(folder, str(accelerator.process_index)).write_text(weights_hash(found.unet))


def test_two_processes_get_the_same(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    start_processes_of(2, load_in_each_process, str(base), str(tmp_path))
    expected = weights_hash(DDPMCustomPipeline.from_pretrained(base).unet)
    assert [(tmp_path / rank).read_text() for rank in "01"] == [expected] * 2


CONSTANT = ["--training.lr_schedule", "constant", "--training.checkpoint_every", 2]
FOLLOWED = ["--model.dropout", "0.1", *CONSTANT]


def test_a_run_goes_on_to_the_same_bits_when_the_model_is_gone(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", block_out_channels=(8, 8))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {steps: 4, ema_decay: [0.9, 0.5]}\n")
    arguments = ["--config", recipe, "--init_from", base, *FOLLOWED]
    whole = finished(tmp_path / "whole", *arguments)
    run = finished(tmp_path / "run", *arguments, "--training.steps", 2)
    shutil.rmtree(base)
    finished(tmp_path / "run", *arguments)
    mine, theirs = tensors_of(run, 4), tensors_of(whole, 4)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert measured(run)[-1] == measured(whole)[-1]
    environments = [json.loads((folder / "environment.json").read_text()) for folder in (run, whole)]
    assert environments[0]["base_model"] == environments[1]["base_model"] is not None
    results = json.loads((run / "metrics.json").read_text())
    assert results["environment"]["base_model"] == environments[0]["base_model"]

    # It began from there, so another base would be a wrong word on what it is; init_partial has done what it could.
    status, said = ended(tmp_path / "run", *arguments, "--init_from", "me/other")
    assert status == 2
    assert f"was trained with other settings (init_from '{base}' -> 'me/other')" in said
    status, said = ended(tmp_path / "run", *arguments, "--init_partial", "--training.steps", 5)
    assert status == 0, said


def test_a_checkpoint_from_the_hub_knows_no_path_of_another_machine(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "base")
    start = built(bare, "--init_from", base)
    elsewhere = replace(start.config, init_from="base").to_dict()
    record = {"config": elsewhere, "data": start.data.fingerprint}
    monkeypatch.setattr(setup, "record_of", lambda path: record)
    assert setup._accepted(tmp_path, start.config, start.data) is record
    elsewhere["init_from"] = "other"
    with pytest.raises(ValueError, match=r"init_from 'other' -> '.*/base'"):
        setup._accepted(tmp_path, start.config, start.data)


def test_an_average_of_a_checkpoint_is_a_start_and_a_run_without_a_pipeline_names_it(tmp_path: Path) -> None:
    base = finished(tmp_path / "base", "--training.steps", 2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {batch_size: 16}\n")
    start = built(recipe, "--init_from", base / "checkpoints" / "step-2")
    assert weights_hash(start.state.unet) == weights_hash(DDPMCustomPipeline.from_pretrained(base).unet)
    (base / "model_index.json").unlink()
    said = refused(recipe, "--init_from", base)
    assert f"has not ended; give {base / 'checkpoints' / 'step-2'}, its newest checkpoint" in said


def test_a_dry_run_starts_there_too(tmp_path: Path) -> None:
    base = saved(tmp_path / "base", block_out_channels=(8, 8), layers_per_block=1, attention_head_dim=None)
    status, said = ended(tmp_path / "run", "--init_from", base, "--dry_run", "--diffusion.prediction_type", "epsilon")
    assert status == 0, said
    assert "After 3 steps, one save and 8 images" in said
    assert "was trained with another process (prediction_type 'v_prediction', now 'epsilon')" in said
    assert not (tmp_path / "run").exists()


def test_init_partial_alone_does_nothing(capsys: pytest.CaptureFixture[str], bare: Path) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--init_partial"], bare)
    assert "init_partial is True and does nothing without init_from; give that too" in capsys.readouterr().err


def test_a_folder_is_named_by_no_path_on_the_card(tmp_path: Path) -> None:
    base = saved(tmp_path / "secret_base", block_out_channels=(8, 8), layers_per_block=1, attention_head_dim=None)
    run = finished(tmp_path / "run", "--init_from", base, "--training.steps", 1)
    push = model_push(run, "me/tuned", "mit")
    assert push.card is not None
    card = push.card(None)
    assert "base_model" not in card.partition("---\n\n")[0]
    assert "The training started from the weights of a model that is not on the Hub" in card
    assert json.loads((run / "environment.json").read_text())["base_model"]["weights_sha256"] in card
    published = [content if isinstance(content, bytes) else content.read_bytes() for content in push.files.values()]
    assert str(tmp_path).encode() not in b"".join(published)
