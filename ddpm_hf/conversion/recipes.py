"""Settings files of other projects: ddpm-torch's .json and ermongroup/ddim's .yml, read and written; OpenAI's flags.

Of a checkpoint they say what its weights do not: the images' size, dropout and the noise schedule. A ddpm-torch recipe
also becomes one of configs/train.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from ddpm_hf.conversion.layout_tables import DDPM_TORCH, LIKE_HO
from ddpm_hf.conversion.openai_flags import PUBLISHED, parse_flags, read_flags
from ddpm_hf.conversion.openai_training import training_settings
from ddpm_hf.conversion.recipe_terms import Dataset, ForeignRecipe, Section, check_schedule, levels_of

DDPM_TORCH_SCHEDULES: Final = {
    "linear": "linear",
    "quad": "scaled_linear",
    "const": "const",
    "warmup10": "warmup10",
    "warmup50": "warmup50",
    "jsd": "jsd",
}
"""Its names of noise schedules, which are those of Ho et al.'s code -> ours."""

ERMONGROUP_SCHEDULES: Final = {
    "linear": "linear",
    "quad": "scaled_linear",
    "const": "const",
    "jsd": "jsd",
    "sigmoid": "sigmoid",
}
PREDICTION_TYPES: Final = {"eps": "epsilon", "x_0": "sample", "mean": "posterior_mean"}
VARIANCE_TYPES: Final = {"fixed-small": "fixed_small", "fixed-large": "fixed_large", "learned": "learned"}


DATASETS: Final = {
    "mnist": Dataset(60_000, 1, 32, {"name": "ylecun/mnist", "resolution": 32}),
    "cifar10": Dataset(50_000, 3, 32, {"name": "uoft-cs/cifar10", "random_flip": True}),
    "celeba": Dataset(
        202_599,
        3,
        64,
        {"name": "nielsr/CelebA-faces", "center_crop": 148, "resolution": 64, "random_flip": True},
    ),
    "celebahq": Dataset(30_000, 3, 256, {"name": "korexyz/celeba-hq-256x256", "resolution": 256, "random_flip": True}),
}


def read_recipe(path: Path) -> ForeignRecipe:
    """A ddpm-torch recipe (.json, or the .info that its training writes), one of ermongroup/ddim (.yml, .yaml), flags
    of improved-diffusion or guided-diffusion (.txt), or the name of a checkpoint that these publish.

    Raises:
        ValueError: it is not such a file, or asks for what has no counterpart here, in one sentence.
        FileNotFoundError: it is not there.
    """
    if str(path) in PUBLISHED and not path.exists():
        return read_flags(PUBLISHED[str(path)])
    readers = {".json": _from_json, ".info": _from_json, ".yml": _from_yaml, ".yaml": _from_yaml, ".txt": _from_flags}
    if path.suffix not in readers:
        raise ValueError(
            f"{path} is no recipe; give ddpm-torch's .json or .info, ermongroup/ddim's .yml, a .txt of OpenAI's flags, "
            f"or the name of one of OpenAI's checkpoints ({', '.join(PUBLISHED)})"
        )
    if not path.is_file():
        raise FileNotFoundError(f"the recipe {path} does not exist")
    try:
        return readers[path.suffix](path)
    except ValueError as error:
        raise ValueError(f"the recipe {path} {error}") from None
    except KeyError as error:
        raise ValueError(f"the recipe {path} lacks {error.args[0]!r}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the recipe {path} has a value of the wrong kind ({error})") from None


def _from_json(path: Path) -> ForeignRecipe:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"is not JSON ({' '.join(str(error).split())})") from None
    return _ddpm_torch(_settings(content), path.stem)


def _from_yaml(path: Path) -> ForeignRecipe:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML ({' '.join(str(error).split())})") from None
    return _ermongroup(_settings(content))


def _from_flags(path: Path) -> ForeignRecipe:
    return read_flags(parse_flags(path.read_text()))


def _settings(content: Any) -> Section:
    if not isinstance(content, dict):
        raise ValueError(f"holds {type(content).__name__}, not settings")
    return content


def _ddpm_torch(content: Section, stem: str) -> ForeignRecipe:
    sections = {"dataset", "seed", "diffusion", "model", "denoise", "train", "use_ema", "ema_decay", "num_accum"}
    _refuse_unknown(content, sections, "")
    process = content["diffusion"]
    keys = {"timesteps", "beta_start", "beta_end", "beta_schedule", "model_mean_type", "model_var_type", "loss_type"}
    _refuse_unknown(process, keys, "diffusion.")
    diffusion = {
        "num_train_timesteps": process["timesteps"],
        "beta_start": process["beta_start"],
        "beta_end": process["beta_end"],
        "beta_schedule": _choose("beta_schedule", process["beta_schedule"], DDPM_TORCH_SCHEDULES),
        "prediction_type": _choose("model_mean_type", process["model_mean_type"], PREDICTION_TYPES),
        "variance_type": _choose("model_var_type", process["model_var_type"], VARIANCE_TYPES),
    }

    network = content["denoise"] if "denoise" in content else content["model"]  # its name in older versions
    keys = {"in_channels", "out_channels", "hid_channels", "ch_multipliers", "num_res_blocks", "apply_attn"}
    keys |= {"time_embedding_dim", "drop_rate", "resample_with_conv", "block_size"}
    _refuse_unknown(network, keys, "model.")
    if network.get("block_size", 1) != 1:
        raise ValueError(
            f"has block_size={network['block_size']}: pixels folded into channels, which UNet2DModel lacks"
        )
    if not network.get("resample_with_conv", True):
        raise ValueError("has resample_with_conv=false, which no UNet2DModel has")
    multipliers = network["ch_multipliers"]
    attention = network["apply_attn"]
    if isinstance(attention, bool):
        attention = [attention] * len(multipliers)
    dataset = DATASETS.get(content.get("dataset", stem).lower().replace("_", ""))
    in_channels = network["in_channels"] if "in_channels" in network or dataset is None else dataset.channels
    time_channels = network.get("time_embedding_dim")
    model = {
        **({"sample_size": dataset.resolution} if dataset else {}),
        "in_channels": in_channels,
        "out_channels": in_channels * (2 if diffusion["variance_type"] == "learned" else 1),
        **levels_of([network["hid_channels"] * multiplier for multiplier in multipliers], attention),
        "layers_per_block": network["num_res_blocks"],
        "time_embedding_dim": None if time_channels == 4 * network["hid_channels"] else time_channels,
        "dropout": network.get("drop_rate", 0.0),
    }
    average = {key: content[key] for key in ("use_ema", "ema_decay") if key in content}  # there in older versions
    train = {**average, **content["train"]} if "train" in content else None
    return ForeignRecipe(model, diffusion, dataset, train)


def _ermongroup(content: Section) -> ForeignRecipe:
    """Its sections data, model and diffusion; the others say how to train and sample."""
    data, network, process = content["data"], content["model"], content["diffusion"]
    if not data.get("rescaled", True) or data.get("logit_transform", False):
        raise ValueError("has images other than in [-1, 1] (data.rescaled, data.logit_transform)")
    if not network.get("resamp_with_conv", True):
        raise ValueError("has model.resamp_with_conv=false, which no UNet2DModel has")
    if network.get("type", "simple") != "simple":
        raise ValueError(f"has model.type={network['type']!r}, and 'simple' is known")
    size = data["image_size"]
    channels = [network["ch"] * multiplier for multiplier in network["ch_mult"]]
    attention = [size // 2**i in network["attn_resolutions"] for i in range(len(channels))]
    variances = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}
    return ForeignRecipe(
        model={
            "sample_size": size,
            "in_channels": network["in_channels"],
            "out_channels": network["out_ch"],
            **levels_of(channels, attention),
            "layers_per_block": network["num_res_blocks"],
            "dropout": network.get("dropout", 0.0),
        },
        diffusion={
            "num_train_timesteps": process["num_diffusion_timesteps"],
            "beta_start": process["beta_start"],
            "beta_end": process["beta_end"],
            "beta_schedule": _choose("beta_schedule", process["beta_schedule"], ERMONGROUP_SCHEDULES),
            "variance_type": _choose("model.var_type", network["var_type"], variances),
        },
    )


def to_training_recipe(path: Path) -> str:
    """A ddpm-torch recipe, or OpenAI's flags, as one of configs/train, in YAML.

    Raises:
        ValueError: it says nothing of training, or what has no counterpart here, in one sentence.
    """
    if path.suffix == ".txt":
        return _of_flags(path)
    recipe = read_recipe(path)
    if recipe.dataset is None or recipe.train is None:
        raise ValueError(
            f"the recipe {path} does not name one of {', '.join(DATASETS)} as its data set or has no section train, so "
            "its epochs are no number of steps"
        )
    train, dataset = dict(recipe.train), recipe.dataset
    names = ("lr", "batch_size", "beta1", "beta2", "grad_norm", "warmup", "epochs", "use_ema", "ema_decay")
    known = {*names, "chkpt_intv", "image_intv", "num_samples"}
    try:
        _refuse_unknown(train, known, "train.")
        loss = json.loads(path.read_text())["diffusion"]["loss_type"]
        if recipe.diffusion["variance_type"] == "learned" and loss == "mse":
            raise ValueError("has model_var_type='learned' with loss_type='mse', which teaches no variance")
        epoch = dataset.size // train["batch_size"]  # an incomplete last batch is left out
        training: Section = {
            "steps": train["epochs"] * epoch,
            "batch_size": train["batch_size"],
            "learning_rate": train["lr"],
            "betas": [train.get("beta1", 0.9), train.get("beta2", 0.999)],
            "loss": _choose("loss_type", loss, {"mse": "simple", "kl": "kl"}),
            "warmup_steps": train["warmup"],
            "max_grad_norm": train["grad_norm"],
            "ema_decay": train.get("ema_decay", 0.9999) if train.get("use_ema", True) else 0.0,
            "checkpoint_every": train.get("chkpt_intv", 120) * epoch,
            "sample_every": train.get("image_intv", 10) * epoch,
        }
    except ValueError as error:
        raise ValueError(f"the recipe {path} {error}") from None
    except KeyError as error:
        raise ValueError(f"the recipe {path} lacks train.{error.args[0]}") from None
    settings = {
        "output_dir": f"runs/{path.stem}",
        "data": dict(dataset.data),
        "model": {**recipe.model, **LIKE_HO, "norm_eps": DDPM_TORCH.norm_eps[0]},
        "diffusion": recipe.diffusion,
        "training": training,
        "evaluation": {"grid_images": train.get("num_samples", 64)},
    }
    body: str = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120)
    return f"# {path.name} of ddpm-torch, converted by ddpm-hf-convert.\n{body}"


def _of_flags(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"the recipe {path} does not exist")
    try:
        settings = training_settings(parse_flags(path.read_text()))
    except ValueError as error:
        raise ValueError(f"the recipe {path} {error}") from None
    data = {"name": "./images", "resolution": settings["model"]["sample_size"]}
    settings = {"output_dir": f"runs/{path.stem}", "data": data, **settings}
    body: str = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120)
    return f"# {path.name}, flags of OpenAI's projects, converted by ddpm-hf-convert. Give --data.name.\n{body}"


def ddpm_torch_recipe(unet: Any, scheduler: Any) -> str:
    """The JSON recipe with which ddpm-torch builds this network and process, without training.

    Raises:
        ValueError: it has no such process.
    """
    process = _process(scheduler, DDPM_TORCH_SCHEDULES)
    prediction = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    variance = {ours: theirs for theirs, ours in VARIANCE_TYPES.items()}
    recipe = {
        "diffusion": {
            "timesteps": process.pop("num_train_timesteps"),
            **process,
            "model_mean_type": _choose("prediction_type", scheduler.prediction_type, prediction),
            "model_var_type": _choose("variance_type", _variance_type(scheduler), variance),
            "loss_type": "mse",
        },
        "model": {
            "in_channels": unet.in_channels,
            "hid_channels": unet.block_out_channels[0],
            "ch_multipliers": _multipliers(unet),
            "num_res_blocks": unet.layers_per_block,
            "apply_attn": _attention(unet),
            **({"time_embedding_dim": unet.time_embedding_dim} if unet.time_embedding_dim else {}),
            "drop_rate": unet.dropout,
        },
    }
    return json.dumps(recipe, indent=2) + "\n"


def ermongroup_recipe(unet: Any, scheduler: Any) -> str:
    """The sections data, model and diffusion of a recipe of ermongroup/ddim, in YAML.

    Raises:
        ValueError: it has no such process.
    """
    process = _process(scheduler, ERMONGROUP_SCHEDULES)
    _choose("prediction_type", scheduler.prediction_type, {"epsilon": "epsilon"})
    variance = _choose(
        "variance_type", _variance_type(scheduler), {"fixed_small": "fixedsmall", "fixed_large": "fixedlarge"}
    )
    size = unet.sample_size
    if not isinstance(size, int):
        raise ValueError(f"has sample_size={size}, and the other side knows squares by their side")
    recipe = {
        "data": {"image_size": size, "channels": unet.in_channels, "logit_transform": False, "rescaled": True},
        "model": {
            "type": "simple",
            "in_channels": unet.in_channels,
            "out_ch": unet.out_channels,
            "ch": unet.block_out_channels[0],
            "ch_mult": _multipliers(unet),
            "num_res_blocks": unet.layers_per_block,
            "attn_resolutions": [size // 2**i for i, has in enumerate(_attention(unet)) if has],
            "dropout": unet.dropout,
            "var_type": variance,
            "resamp_with_conv": True,
        },
        "diffusion": {"num_diffusion_timesteps": process.pop("num_train_timesteps"), **process},
    }
    text: str = yaml.safe_dump(recipe, sort_keys=False)
    return text


def _process(scheduler: Any, schedules: Mapping[str, str]) -> Section:
    """The forward process of a scheduler's config in the names of Ho et al.'s code."""
    name = _choose("beta_schedule", scheduler.beta_schedule, {ours: theirs for theirs, ours in schedules.items()})
    check_schedule(scheduler)
    return {
        "beta_schedule": name,
        "beta_start": scheduler.beta_start,
        "beta_end": scheduler.beta_end,
        "num_train_timesteps": scheduler.num_train_timesteps,
    }


def _variance_type(scheduler: Any) -> str:
    return str(scheduler.get("variance_type", "fixed_small")).removesuffix("_log")


def _multipliers(unet: Any) -> list[int]:
    return [width // unet.block_out_channels[0] for width in unet.block_out_channels]


def _attention(unet: Any) -> list[bool]:
    return [kind.startswith("Attn") for kind in unet.down_block_types]


def _choose(key: str, value: Any, table: Mapping[str, str]) -> str:
    if value not in table:
        raise ValueError(f"has {key}={value!r}, and the other side knows {', '.join(table)}")
    return table[value]


def _refuse_unknown(section: Mapping[str, Any], known: set[str], prefix: str) -> None:
    unknown = [key for key in section if key not in known]
    if unknown:
        raise ValueError(f"sets {prefix}{unknown[0]}, which is no setting of ddpm-torch that is known here")
