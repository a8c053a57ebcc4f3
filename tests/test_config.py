"""Settings: who wins, where they come from, and what a wrong one says."""

import inspect
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ddpm_hf import DDPMScheduler
from ddpm_hf.command_line import parse_config
from ddpm_hf.models.unet_2d import UNet2DModel
from ddpm_hf.settings import plain
from ddpm_hf.training.changes import changes
from ddpm_hf.training.evaluation import first_image_seed
from ddpm_hf.training.settings import Config

BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS, PHOTOS = CONFIGS / "train" / "digits.yaml", CONFIGS / "train" / "photos.yaml"
FINE_TUNE = CONFIGS / "train" / "fine_tune.yaml"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    model = "model: {block_out_channels: [32, 64, 64, 64]}"
    path.write_text(f"seed: 5\ntraining: {{steps: 70, learning_rate: 1.0e-3}}\n{model}\n")
    return path


def parse(*argv: object) -> Config:
    return parse_config([str(argument) for argument in argv], DIGITS, {"init_from": FINE_TUNE, "data.name": PHOTOS})


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What is said of wrong arguments: one line, with status 2."""
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_command_line_wins_over_the_recipe_wins_over_the_defaults(recipe: Path) -> None:
    config = parse("--training.steps", 9, "--config", recipe)
    assert config.training.steps == 9
    assert config.training.learning_rate == 1e-3
    assert config.seed == 5
    assert config.model["block_out_channels"] == (32, 64, 64, 64)
    assert config.training.batch_size == 128
    assert parse("--config", recipe, "--training.steps", 9) == config


def test_without_a_recipe_digits_is_the_recipe_and_with_one_nothing_of_it_is_left(recipe: Path) -> None:
    digits = yaml.safe_load(DIGITS.read_text())
    config = parse()
    assert config.model["in_channels"] == digits["model"]["in_channels"] == 1
    assert config.training.ema_decay == digits["training"]["ema_decay"]
    other = parse("--config", recipe)
    unet_default = inspect.signature(UNet2DModel.__init__).parameters["in_channels"].default
    assert other.model["in_channels"] == unet_default != 1
    assert other.training.ema_decay == 0.9999
    assert other.diffusion["prediction_type"] == "epsilon"


def test_other_data_than_the_digits_have_the_recipe_of_photographs_and_are_told(
    capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    """Whose network follows the images; and a recipe that is given counts."""
    config = parse("--data.name", "my/photos", "--data.resolution", 128)
    assert (config.model["in_channels"], config.data.resolution, config.output_dir) == (None, 128, Path("runs/photos"))
    said = capsys.readouterr().err
    assert said == f"The recipe is {PHOTOS}, as data.name is not digits; --config gives another.\n"
    assert parse("--data.name=my/photos", "--quiet").output_dir == Path("runs/photos")
    assert parse("--data.name", "digits").output_dir == Path("runs/digits")
    assert parse("--data.name", "my/photos", "--config", recipe).seed == 5
    assert parse("--data.name", "my/photos", f"--config={DIGITS}").model["in_channels"] == 1
    assert capsys.readouterr().err == ""


def test_from_a_model_the_recipe_is_the_one_that_leaves_network_and_process_to_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = parse("--init_from", "me/model", "--data.name", "my/photos", "--model.dropout", 0.1)
    said = f"The recipe is {FINE_TUNE}, as init_from is given; --config gives another.\n"
    assert capsys.readouterr().err == said
    assert config.is_open
    assert (config.model, config.diffusion) == ({"dropout": 0.1}, {})
    # What is null in photos.yaml is given by nobody, and what it says is given.
    photos = parse("--init_from", "me/model", "--config", PHOTOS)
    assert photos.is_open
    assert photos.model.keys() >= {"attention_head_dim", "norm_num_groups"}
    assert photos.diffusion.keys() == {"beta_schedule", "prediction_type"}
    assert not parse("--init_from", "me/model", "--config", DIGITS, *every_setting()).is_open
    assert "init_from is '' and must be the folder or the Hub id" in refusal(capsys, "--init_from", "")


def every_setting() -> list[str]:
    """All the defaults of the network and the process, as they are typed."""
    config = parse_config([], DIGITS)
    groups = {"model": config.model, "diffusion": config.diffusion}
    return [f"--{group}.{key}={yaml_of(value)}" for group, given in groups.items() for key, value in given.items()]


def yaml_of(value: object) -> str:
    return yaml.safe_dump(plain(value), default_flow_style=True).removesuffix("...\n").strip()


def test_a_network_that_follows_the_images_is_settled_by_them(tmp_path: Path) -> None:
    config = parse("--data.name", "my/photos", "--data.resolution", 48, "--model.layers_per_block", 1, "--quiet")
    settled = config.following((1, 48, 48))
    assert settled.model["sample_size"] == 48
    assert (settled.model["in_channels"], settled.model["layers_per_block"]) == (1, 1)
    assert settled.model["block_out_channels"] == [64, 128, 256, 512]
    assert settled.following((3, 64, 64)) is settled
    assert replace(config, model=settled.model) == settled
    # What a run keeps is as if all of it had been given, so that records of earlier versions compare equal.
    (tmp_path / "config.yaml").write_text(settled.to_yaml())
    given = parse("--config", tmp_path / "config.yaml")
    assert given.following((1, 48, 48)) is given
    assert changes(settled.to_dict(), given.to_dict()) == {}
    learned = parse("--data.name", "x", "--diffusion.variance_type=learned_range", "--training.loss=hybrid", "--quiet")
    assert learned.following((5, 64, 64)).model["out_channels"] == 10


def test_a_size_without_a_network_is_refused_before_the_data_are_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refusal(capsys, "--data.name", "my/photos", "--data.resolution", 75)
    assert "the images have 75 x 75 pixels" in said
    assert "give images of 72 x 72 or 76 x 76 pixels, or model.block_out_channels for a network of your own" in said
    said = refusal(capsys, "--data.name", "my/photos", "--data.resolution", 65, "--model.patch_size", 2)
    assert "model.patch_size 2 does not divide; give images of 64 x 64 or 66 x 66 pixels" in said
    # The images decide later, where no resolution is given.
    assert parse("--data.name=my/photos", "--data.resolution=null", "--model.patch_size=3", "--quiet").model


def test_model_and_diffusion_have_the_keys_and_defaults_of_their_classes(recipe: Path) -> None:
    config = parse("--config", recipe)
    for cls, settings in ((UNet2DModel, config.model), (DDPMScheduler, config.diffusion)):
        parameters = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
        assert [p.name for p in parameters] == list(settings)
        for parameter in parameters:
            if (cls, parameter.name) != (UNet2DModel, "block_out_channels"):
                assert settings[parameter.name] == parameter.default


def test_the_resolved_settings_are_a_recipe_that_gives_them_again(tmp_path: Path) -> None:
    config = parse("--seed", 3, "--training.max_grad_norm", ".inf", "--training.betas", "[0.8,0.9]", "--threads", 2)
    assert config.training.max_grad_norm == math.inf
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert parse("--config", tmp_path / "config.yaml") == config


@pytest.mark.parametrize("argv", [["--data.random_flip"], ["--data.random_flip", "true"], ["--data.random_flip=true"]])
def test_a_nested_switch_stands_alone_or_with_its_value(argv: list[str]) -> None:
    assert parse(*argv, "--quiet").data.random_flip
    assert parse(*argv, "--data.random_flip=false") == parse("--data.random_flip", "false")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3\n", encoding="utf-8-sig")
    assert parse("--config", tmp_path / "recipe.yaml").seed == 3


def test_any_seed_gives_images_of_its_own() -> None:
    seeds = [0, 1, 2, 2**63 // 500 - 1, 2**63 // 500, 1_764_000_000_123_456_789, 2**62, 2**63 - 2, 2**63 - 1]
    first = [first_image_seed(parse("--seed", seed, "--evaluation.num_images", 500)) for seed in seeds]
    assert first[:4] == [0, 500, 1000, (2**63 // 500 - 1) * 500]
    for one in first:
        torch.Generator().manual_seed(one + 499)
    assert all(abs(a - b) >= 500 for i, a in enumerate(first) for b in first[:i])


def test_print_config_prints_that_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--print_config", "--seed", 4)
    assert ended.value.code == 0
    assert capsys.readouterr().out == parse("--seed", 4).to_yaml()


def test_help_shows_every_setting_with_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    settings = yaml.safe_load(parse().to_yaml())
    names = [
        f"{group}.{name}" if name else group
        for group, values in settings.items()
        for name in (values if isinstance(values, dict) else [""])
    ]
    assert len(names) > 50
    shown = re.sub(r", --\S+\+ \S+", "", shown)  # "--list_setting VALUE, --list_setting+ VALUE"
    entries = dict(entry.split(" ", 1) for entry in shown.split(" --")[1:] if " " in entry)
    for name in names:
        assert "default: " in entries[name], name
        meaning = entries[name].split("(type:")[0]
        assert len(meaning.split()) > 1, f"--help says nothing about {name}"
    assert f"default: {settings['training']['steps']})" in entries["training.steps"]  # the recipe's


def test_an_unknown_setting_is_refused_with_the_nearest_that_exists(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "'training.stps', which is no setting; the nearest one is 'training.steps'" in refusal(
        capsys, "--training.stps=3"
    )
    assert "the nearest one is 'seed'" in refusal(capsys, "--sed", 3)
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: {block_channels: [8]}\n")
    assert f"{bad} sets 'model.block_channels'" in (said := refusal(capsys, "--config", bad))
    assert "'model.block_out_channels'" in said
    bad.write_text("trainin: {steps: 3}\n")
    assert "the nearest one is 'training'" in refusal(capsys, "--config", bad)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--training.steps", "many"], "training.steps was given 'many' and takes int"),
        (
            ["--training.optimizer", "sgd"],
            "training.optimizer was given 'sgd' and takes one of ['adam', 'adamw', 'muon']",
        ),
        (["--training.steps", "0"], "training.steps is 0 and must be at least 1"),
        (["--training.ema_decay", "1"], "training.ema_decay is 1.0 and must be at least 0 and below 1"),
        (["--training.label_dropout", "1"], "training.label_dropout is 1.0 and must be at least 0 and below 1"),
        (["--training.loss", "vlb"], "training.loss was given 'vlb' and takes one of ['simple', 'kl', 'hybrid']"),
        (["--training.learning_rate", "-1"], "training.learning_rate is -1.0 and must be above 0"),
        (["--evaluation.eta", "2"], "evaluation.eta is 2.0 and must be from 0 to 1"),
        (["--seed", "-1"], "seed is -1 and must be at least 0"),
        (["--seed", str(2**63)], f"seed is {2**63} and must be at most {2**63 - 1}"),
        (["--quiet", "maybe"], "quiet was given 'maybe' and takes true or false"),
        (["--training", "5"], "'training', which is no setting"),
        (["--training.learning_rate", ".nan"], "training.learning_rate is nan and must be above 0"),
        (["--training.learning_rate", ".inf"], "training.learning_rate is inf and must be a finite number"),
        (["--training.label_dropout", "0.1"], "training.label_dropout is 0.1 and must be 0, or model.num_class_embeds"),
        (["--model.layers_per_block", "0"], "model.layers_per_block=0 must be 1 or more"),
        (["--model.in_channels", "2"], "model.out_channels is 1 and must be 2 for model.in_channels 2"),
        (["--model.sample_size", "9"], "model.sample_size is 9 and must be a multiple of"),
        (
            ["--data.resolution", "9", "--model.sample_size", "9"],
            "data.resolution is 9 and must be a multiple of 2, as model.block_out_channels has 2 levels",
        ),
        (["--diffusion.num_train_timesteps", "0"], "diffusion.num_train_timesteps=0 must be 1 or more"),
        (["--diffusion.beta_schedule", "cosine"], "diffusion.beta_schedule='cosine' must be one of linear"),
        (["--diffusion.prediction_type", "x0"], "diffusion.prediction_type='x0' must be one of epsilon"),
        (["--diffusion.variance_type", "big"], "diffusion.variance_type='big' must be one of fixed_small"),
        (["--diffusion.timestep_spacing", "even"], "diffusion.timestep_spacing='even' must be one of leading"),
        (["--diffusion.beta_start", "0"], "diffusion.beta_start=0.0 must be above 0 and below 1"),
        (["--diffusion.beta_start", "0.5"], "must be at least diffusion.beta_start=0.5 and below 1"),
        (["--diffusion.clip_sample_range", "0"], "diffusion.clip_sample_range=0.0 must be above 0"),
        (["--diffusion.trained_betas", "[0.1]"], "diffusion.trained_betas='1 numbers' must be"),
        (["--diffusion.variance_type", "learned"], "='learned' learns nothing from training.loss='simple'"),
        (["--training.loss", "hybrid"], "training.loss='hybrid' adds nothing to 'simple'"),
        (
            ["--training.loss_weighting", "p2", "--diffusion.prediction_type", "posterior_mean"],
            "training.loss_weighting='p2' is defined for epsilon, sample and v_prediction",
        ),
        (
            ["--diffusion.rescale_betas_zero_snr", "--diffusion.prediction_type", "epsilon"],
            "diffusion.prediction_type='epsilon' says nothing about the image at the last timestep",
        ),
        (["--evaluation.num_inference_steps", "1001"], "evaluation.num_inference_steps is 1001 and must be at most"),
        (["--evaluation.guidance_scale", "2"], "evaluation.guidance_scale is 2.0 and must be 1, or training.label"),
        (["--data.streaming"], "evaluation.extractor needs all the training images at hand"),
        (["--model.time_embedding_type", "fourier"], "model.time_embedding_type is fourier and must be positional or"),
        (
            ["--model.time_embedding_type", "learned", "--model.num_train_timesteps", "10"],
            "model.num_train_timesteps is 10 and must be at least diffusion.num_train_timesteps, 1000",
        ),
        (["--model.class_embed_type", "identity"], "model.class_embed_type is identity and must be null or timestep"),
        (["--model.class_embed_type", "timestep"], "model.num_class_embeds is None and must be the number of classes"),
        (["--data.center_crop", "x"], "data.center_crop was given 'x' and takes"),
        (["--seed", "1e3"], "seed was given '1000.0' and takes int"),
        (["--threads", "0"], "threads is 0 and must be at least 1"),
        (["--config", "nowhere.yaml"], "the recipe nowhere.yaml cannot be read (No such file or directory)"),
    ],
)
def test_a_wrong_value_is_refused_with_one_sentence(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    assert said in refusal(capsys, *argv)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: [", "is not YAML"),
        ("", "must hold settings"),
        ("# training:\n", "must hold settings, such as 'seed: 0', and holds nothing"),
        ("- seed\n", "and holds ['seed']"),
        ("training: {steps: soon}\n", "given 'soon' and takes int"),
        (
            "training: 5\n",
            "sets 'training' to 5, and it takes settings of its own, each on a line below it, such as 'st",
        ),
        ("training:\nseed: 3\n", "sets 'training' to None"),
        ("model: [1]\n", "sets 'model' to [1]"),
        ("data: {center_crop: [4]}\n", "data.center_crop was given '[4]' and takes"),
        ("evaluation: {guidance_scale: null}\n", "evaluation.guidance_scale was given 'null' and takes float"),
        ("model: {norm_num_groups: null}\n", "model.norm_num_groups was given 'null' and takes int"),
        ("model: {down_block_types: [null]}\n", "model.down_block_types was given"),
        ("seed: 1e3\n", "seed was given '1000.0' and takes int"),
        ("seed: true\n", "seed was given 'True' and takes int"),
        ("output_dir: caf\u00e9\n".encode("latin-1"), "is not text in UTF-8 (its byte 15 is not)"),
        ("seed: 3\n".encode("utf-16"), "is not text in UTF-8 (its byte 0 is not)"),
        (bytes(range(8)), "is not YAML"),
        ("seed: 3\ntraining:\n\tsteps: 3\n", "is not YAML: while scanning for the next token found character"),
        ("seed: 3\nseed: 4\n", "cannot be used: it sets 'seed' twice in one place; keep one of the two"),
        ("training:\n  steps: 3\n  loss: kl\n  steps: 4\n", "it sets 'steps' twice"),
        ("a0: &a0 [1, 1]\n" + BOMB, "cannot be used: it holds more than 2,000,000 values"),
        ("a: &a [*a]\n", "cannot be used: it holds more than"),
        ("[" * 5000, "it holds lists in lists without end"),
        ("3: 4\n", "sets '3', which is no setting"),
        ("seed: 2024-01-01\n", "seed was given"),
        ("seed: \0", "is not YAML"),
    ],
)
def test_a_broken_recipe_is_refused_with_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | bytes, said: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in refusal(capsys, "--config", path)
