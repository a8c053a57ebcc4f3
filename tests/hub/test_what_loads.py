"""Each row of docs/what_loads.md is tried: a family's files are made as it makes them, and loaded or converted.

A row without a check here fails, and so does a check without a row.
"""

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_hf import DDPMCustomPipeline, UNet2DModel
from ddpm_hf.models.noisy_classifier import NoisyClassifier
from tests.conversion.test_classifiers import FLAGS as CLASSIFIER_FLAGS
from tests.conversion.test_classifiers import PEER as CLASSIFIER
from tests.conversion_files import YML, ddpm_torch_file, ermongroup_list, recipe_file, refusal, run
from tests.hub_clients import Clients
from tests.hub_server import Hub
from tests.networks import TWO_LEVELS
from tests.openai_peer import OpenAINetwork
from tests.peers import ermongroup_weights

PAGE = Path(__file__).parents[2] / "docs" / "what_loads.md"
ROWS = {
    cells[0]: cells[2]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and (cells := [cell.strip() for cell in line.split("|")[1:-1]])
    if cells[0] not in ("family", "---")
}
STEM = "diffusion_pytorch_model"
OPENAI = "--image_size 16 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2 --attention_resolutions 8 "


@dataclass
class Case:
    """Where a family's files are made; a check adds to `seen` what became of them."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    clients: Clients
    hub: Hub
    seen: list[str] = field(default_factory=list)

    def model(self) -> Path:
        """A pipeline as diffusers of today saves it."""
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(sample_size=8, **TWO_LEVELS)
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(self.folder / "model")
        return self.folder / "model"

    def flat(self, model: Path) -> Path:
        """All its files side by side."""
        (self.folder / "flat").mkdir()
        for path in [*model.glob("*.json"), *model.glob("*/*")]:
            shutil.move(path, self.folder / "flat" / path.name)
        return self.folder / "flat"

    def put(self, model: Path) -> str:
        """The files as a repository; its id."""
        files = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
        name = "me/" + re.sub(r"[\W_]+", "-", self.folder.name)
        self.hub.add(name, files=files)
        return name

    def loads(self, model: Path) -> None:
        """It loads with the weights that `model` makes whatever its files are, and draws."""
        pipe = DDPMCustomPipeline.from_pretrained(model)
        assert weights_sum(pipe.unet) == pytest.approx(expected_sum(), rel=1e-3)
        pipe.set_progress_bar_config(disable=True)
        assert len(pipe(num_inference_steps=5, output_type="np").images) == 1
        self.seen.append("loads")

    def loads_from_hub(self, model: Path) -> None:
        found = self.clients.result(sum_of, self.put(model))
        assert found == pytest.approx(expected_sum(), rel=1e-3), found
        self.seen.append("loads")

    def converts(self, *arguments: object) -> None:
        """The command makes a folder that plain diffusers loads."""
        run(self.folder / arguments[0] if isinstance(arguments[0], str) else arguments[0], self.new, *arguments[1:])
        plain = diffusers.DiffusionPipeline.from_pretrained(self.new)
        assert type(plain.unet) is diffusers.UNet2DModel
        self.seen.append("converts")

    def converts_same(self, model: Path) -> None:
        """It does not load, by a sentence that says so, and the command gets its weights out."""
        with pytest.raises((ValueError, OSError)) as raised:
            DDPMCustomPipeline.from_pretrained(model)
        assert "\n" not in str(raised.value)
        assert re.search("ddpm-hf-convert|for UNet2DModel.from_pretrained", str(raised.value))
        self.converts(model)
        loaded = DDPMCustomPipeline.from_pretrained(self.new)
        assert weights_sum(loaded.unet) == pytest.approx(expected_sum(), rel=1e-3)

    def refused(self, model: Path, said: str) -> None:
        """Neither the pipeline nor the command takes it."""
        with pytest.raises((ValueError, OSError), match=said) as raised:
            DDPMCustomPipeline.from_pretrained(model)
        assert "\n" not in str(raised.value)
        self.refused_by_command(model, said="")

    def refused_by_command(self, source: Path, *options: object, said: str) -> None:
        assert said in refusal(self.capsys, source, self.new, *options)
        assert not self.new.exists()
        self.seen.append("refused")

    @property
    def new(self) -> Path:
        return self.folder / "new"


def weights_sum(unet: Any) -> float:
    return float(sum(weight.double().abs().sum().item() for weight in unet.parameters()))


def expected_sum() -> float:
    torch.manual_seed(0)
    return weights_sum(diffusers.UNet2DModel(sample_size=8, **TWO_LEVELS))


def sum_of(name: str) -> float | str:
    """In a process that sees the Hub."""
    try:
        return weights_sum(DDPMCustomPipeline.from_pretrained(name).unet)
    except (OSError, ValueError) as error:
        return str(error)


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(network: Path, make: Callable[[dict[str, Tensor]], object]) -> None:
    """Put what `make` writes into the place of the weights."""
    file = network / f"{STEM}.safetensors"
    weights = load_file(file)
    file.unlink()
    make(weights)


def renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    for new, old in names.items():
        weights = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in weights.items()}
    return weights


CHECKS: dict[str, Callable[[Case], None]] = {}


def row(family: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """The check of a row, which is named by its first cell."""

    def keep(check: Callable[[Case], None]) -> Callable[[Case], None]:
        assert family not in CHECKS
        CHECKS[family] = check
        return check

    return keep


def test_each_row_has_a_check_and_each_check_a_row() -> None:
    assert sorted(CHECKS) == sorted(ROWS)


@pytest.mark.parametrize("family", ROWS)
def test_a_row_is_true(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], clients: Clients, hub: Hub
) -> None:
    case = Case(tmp_path, capsys, clients, hub)
    CHECKS[family](case)
    outcome = re.match(r"\w+", ROWS[family])
    assert outcome
    assert {*case.seen} == {outcome[0]}


@row("pipelines of a `UNet2DModel`")
def _(case: Case) -> None:
    case.loads(case.model())


@row("`google/ddpm-*`")
def _(case: Case) -> None:
    flat = case.flat(case.model())
    torch.save(load_file(flat / f"{STEM}.safetensors"), flat / f"{STEM}.bin")
    case.loads(flat)
    case.loads_from_hub(flat)


@row("other schedulers (`PNDMPipeline`, ...)")
def _(case: Case) -> None:
    model = case.model()
    diffusers.PNDMScheduler().save_pretrained(model / "scheduler")
    change_json(model / "model_index.json", _class_name="PNDMPipeline", scheduler=["diffusers", "PNDMScheduler"])
    case.loads(model)


@row("sharded weights")
def _(case: Case) -> None:
    model = case.model()
    unet = diffusers.UNet2DModel.from_pretrained(model / "unet")
    change_weights(model / "unet", lambda _: unet.save_pretrained(model / "unet", max_shard_size="100KB"))
    assert len([*(model / "unet").glob("*-of-*.safetensors")]) > 1
    case.loads(model)


@row("half precision only")
def _(case: Case) -> None:
    model = case.model()
    network = model / "unet"
    half = network / f"{STEM}.fp16.safetensors"
    change_weights(network, lambda found: save_file({key: weight.half() for key, weight in found.items()}, half))
    case.loads(model)
    case.loads_from_hub(model)


@row("half precision only, side by side")
def _(case: Case) -> None:
    flat = case.flat(case.model())
    (flat / f"{STEM}.safetensors").rename(flat / f"{STEM}.fp16.safetensors")
    case.converts_same(flat)


@row("pickled weights only")
def _(case: Case) -> None:
    model = case.model()
    change_weights(model / "unet", lambda weights: torch.save(weights, model / "unet" / f"{STEM}.bin"))
    case.converts_same(model)
    said = case.clients.result(sum_of, case.put(model))
    assert re.fullmatch(
        r"me/\S+ has only pickled weights .*'hf download me/\S+ --local-dir FOLDER'.*'ddpm-hf-convert FOLDER .*", said
    )


@row("pickled weights only, side by side")
def _(case: Case) -> None:
    flat = case.flat(case.model())
    change_weights(flat, lambda weights: torch.save(weights, flat / f"{STEM}.bin"))
    case.converts_same(flat)


@row("pickled shards only")
def _(case: Case) -> None:
    network = case.model() / "unet"
    unet = diffusers.UNet2DModel.from_pretrained(network)
    options = {"max_shard_size": "100KB", "safe_serialization": False}
    change_weights(network, lambda _: unet.save_pretrained(network, **options))
    assert len([*network.glob("*-of-*.bin")]) > 1
    case.converts_same(network.parent)


@row("pickled half precision only")
def _(case: Case) -> None:
    model = case.model()
    change_weights(model / "unet", lambda weights: torch.save(weights, model / "unet" / f"{STEM}.fp16.bin"))
    case.converts_same(model)


def example_run(case: Case) -> Path:
    """What diffusers' train_unconditional.py leaves with --use_ema."""
    model = case.model()
    unet = diffusers.UNet2DModel.from_pretrained(model / "unet")
    checkpoint = model / "checkpoint-5"
    unet.save_pretrained(checkpoint / "unet")
    average = EMAModel(unet.parameters(), model_cls=diffusers.UNet2DModel, model_config=unet.config)
    average.save_pretrained(checkpoint / "unet_ema")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (checkpoint / name).write_bytes(b"pickle")
    return model


@row("a run of diffusers' example (`train_unconditional.py`)")
def _(case: Case) -> None:
    case.loads(example_run(case))


@row("a checkpoint of that run")
def _(case: Case) -> None:
    checkpoint = example_run(case) / "checkpoint-5"
    with pytest.raises(FileNotFoundError, match="it holds networks in unet and unet_ema: give one of these"):
        DDPMCustomPipeline.from_pretrained(checkpoint)
    assert "networks in unet and unet_ema: give one of these" in refusal(case.capsys, checkpoint, case.new)
    case.converts_same(checkpoint / "unet_ema")


@row("a network alone")
def _(case: Case) -> None:
    network = case.model() / "unet"
    assert weights_sum(UNet2DModel.from_pretrained(network)) == pytest.approx(expected_sum())
    case.converts_same(network)


@row("the attention's names of before 2023")
def _(case: Case) -> None:
    network = case.model() / "unet"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    file = network / f"{STEM}.safetensors"
    change_weights(network, lambda weights: save_file(renamed(weights, old), file))
    assert any(".proj_attn." in name for name in load_file(file))
    case.loads(network.parent)


@row("the blocks' names of before 0.1")
def _(case: Case) -> None:
    model = case.model()
    old = {
        f"{way}_block_types": [f"UNetRes{kind}" for kind in TWO_LEVELS[f"{way}_block_types"]] for way in ("down", "up")
    }
    change_json(model / "unet" / "config.json", **old)
    case.loads(model)


@row("the network's name of before 0.1")
def _(case: Case) -> None:
    model = case.model()
    change_json(model / "model_index.json", _class_name="DDPM", unet=["diffusers", "UNetUnconditionalModel"])
    change_json(model / "unet" / "config.json", _class_name="UNetUnconditionalModel")
    case.refused(model, "holds a DDPM .*UNetUnconditionalModel")


@row("`google/ncsnpp-*`")
def _(case: Case) -> None:
    model = case.model()
    diffusers.ScoreSdeVeScheduler().save_pretrained(model / "scheduler")
    scheduler = ["diffusers", "ScoreSdeVeScheduler"]
    change_json(model / "model_index.json", _class_name="ScoreSdeVePipeline", scheduler=scheduler)
    skip = {"down_block_types": ["SkipDownBlock2D"] * 2, "up_block_types": ["SkipUpBlock2D"] * 2}
    change_json(model / "unet" / "config.json", **skip)
    case.refused(model, "SkipDownBlock2D")


@row("consistency models (`openai/diffusers-cd_*`)")
def _(case: Case) -> None:
    model = case.model()
    diffusers.CMStochasticIterativeScheduler().save_pretrained(model / "scheduler")
    scheduler = ["diffusers", "CMStochasticIterativeScheduler"]
    change_json(model / "model_index.json", _class_name="ConsistencyModelPipeline", scheduler=scheduler)
    with pytest.raises(ValueError, match=r"CMStochasticIterativeScheduler is for consistency models"):
        DDPMCustomPipeline.from_pretrained(model)()
    case.seen.append("refused")


@row("latent diffusion (`CompVis/ldm-*`, Stable Diffusion), transformers (`facebook/DiT-*`)")
def _(case: Case) -> None:
    model = case.model()
    change_json(model / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])
    case.refused(model, r"holds a LDMPipeline \(.*vqvae: VQModel")
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (model / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "DDIMScheduler"]}))
    case.refused(model, "holds a DiTPipeline")


@row("weights without their config")
def _(case: Case) -> None:
    file = case.model() / "unet" / f"{STEM}.safetensors"
    case.refused_by_command(file, said="give the folder that holds both")
    torch.save(load_file(file), case.folder / f"{STEM}.bin")
    case.refused_by_command(case.folder / f"{STEM}.bin", said="give the folder that holds both")


@row("ddpm-torch (tqch)")
def _(case: Case) -> None:
    ddpm_torch_file(case.folder / "ddpm_cifar10_2040.pt")
    case.converts("ddpm_cifar10_2040.pt", "--recipe", recipe_file(case.folder / "cifar10.json"))


@row("ddpm-torch with `block_size` above 1")
def _(case: Case) -> None:
    weights = {"_model.in_conv.weight": torch.ones(1)}
    torch.save({"model": weights, "ema": {"shadow": weights, "decay": 0.9999, "num_updates": 1}}, case.folder / "a.pt")
    case.refused_by_command(case.folder / "a.pt", said="block_size above 1")


@row("ermongroup/ddim")
def _(case: Case) -> None:
    ermongroup_list(case.folder / "ckpt.pth")
    case.converts("ckpt.pth", "--recipe", recipe_file(case.folder / "church.yml", YML))


@row("pytorch_diffusion (pesser), Ho et al.'s networks")
def _(case: Case) -> None:
    torch.save(ermongroup_weights(), case.folder / "model-790000.ckpt")
    case.converts("model-790000.ckpt", "--recipe", recipe_file(case.folder / "cifar10.yml", YML))


@row("Ho et al.'s own")
def _(case: Case) -> None:
    for end in ("index", "meta", "data-00000-of-00001"):
        (case.folder / f"model.ckpt-790000.{end}").write_bytes(b"\0")
    for name in ("model.ckpt-790000", "model.ckpt-790000.index"):
        case.refused_by_command(case.folder / name, said="a checkpoint of TensorFlow")


def openai(case: Case, flags: str, **options: Any) -> tuple[Path, Path]:
    """The files of weights and of flags."""
    plain = {"width": 32, "levels": (32, 64), "layers": 1, "attended": frozenset({1}), "heads": (1, 1)}
    torch.save(OpenAINetwork(**{**plain, **options}).weights(), case.folder / "a.pt")
    (case.folder / "flags.txt").write_text(OPENAI + flags)
    return case.folder / "a.pt", case.folder / "flags.txt"


@row("OpenAI's guided-diffusion (ADM)")
def _(case: Case) -> None:
    flags = "--num_head_channels 32 --learn_sigma True --resblock_updown True --class_cond True"
    weights, recipe = openai(case, flags, heads=(1, 2), is_residual=True, classes=1000)
    case.converts(weights, "--recipe", recipe)


@row("OpenAI's improved-diffusion")
def _(case: Case) -> None:
    flags = "--num_heads 1 --learn_sigma True --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True"
    weights, recipe = openai(case, flags)
    case.converts(weights, "--recipe", recipe)


@row("OpenAI's classifiers")
def _(case: Case) -> None:
    torch.save(CLASSIFIER.weights(), case.folder / "a.pt")
    (case.folder / "flags.txt").write_text(CLASSIFIER_FLAGS)
    run(case.folder / "a.pt", case.new, "--recipe", case.folder / "flags.txt")
    parameters = NoisyClassifier.from_pretrained(case.new).parameters()
    assert sum(weight.numel() for weight in parameters) == CLASSIFIER.parameters()
    case.seen.append("converts")


@row("OpenAI's upsamplers")
def _(case: Case) -> None:
    weights, _ = openai(case, "")
    content = torch.load(weights, weights_only=True)
    content["input_blocks.0.0.weight"] = torch.ones(32, 6, 3, 3)
    torch.save(content, weights)
    case.refused_by_command(weights, said="an upsampler of OpenAI's")


@row("denoising-diffusion-pytorch (lucidrains)")
def _(case: Case) -> None:
    weights = {"model.init_conv.weight": torch.ones(2), "model.time_mlp.1.weight": torch.ones(2)}
    ema = {"initted": torch.tensor(True), "ema_model.model.init_conv.weight": torch.ones(2)}
    torch.save({"step": 5, "model": weights, "opt": {}, "ema": ema, "scaler": None}, case.folder / "model-1.pt")
    case.refused_by_command(case.folder / "model-1.pt", said="lucidrains")
    torch.save(weights, case.folder / "weights.pt")
    case.refused_by_command(case.folder / "weights.pt", said="lucidrains")


class OfNvidia:
    """Pickled as their classes are: by the name of a function that would run the code that is pickled with it."""

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, ({"module_src": "raise"},)


@row("EDM and EDM2 (NVIDIA)")
def _(case: Case) -> None:
    names = ("torch_utils", "torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("code of the file was run")

    _reconstruct_persistent_obj.__module__ = names[1]
    _reconstruct_persistent_obj.__qualname__ = _reconstruct_persistent_obj.__name__
    with pytest.MonkeyPatch.context() as patches:
        for name in names:
            patches.setitem(sys.modules, name, ModuleType(name))
        sys.modules[names[1]]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
        for protocol in (2, 4):
            file = case.folder / f"edm-cifar10-{protocol}.pkl"
            file.write_bytes(pickle.dumps({"ema": OfNvidia(), "augment_pipe": None}, protocol))
            case.refused_by_command(file, said="is a pickle of NVIDIA's EDM")


@row("EDM's weights alone")
def _(case: Case) -> None:
    for name in ("model.enc.32x32_conv.weight", "unet.enc.64x64_conv.weight", "enc.32x32_block0.norm0.weight"):
        torch.save({name: torch.ones(1)}, case.folder / "a.pt")
        case.refused_by_command(case.folder / "a.pt", said="a network of NVIDIA's EDM")


@row("score_sde_pytorch")
def _(case: Case) -> None:
    weights = {"module.all_modules.0.weight": torch.ones(1)}
    ema = {"decay": 0.999, "num_updates": 1, "shadow_params": [torch.ones(1)]}
    torch.save({"optimizer": {}, "model": weights, "ema": ema, "step": 1}, case.folder / "checkpoint_8.pth")
    case.refused_by_command(case.folder / "checkpoint_8.pth", said="score_sde_pytorch")
