"""Models from a Hub: by this package, by plain diffusers, and what is said of those that cannot be had."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
from diffusers import DiffusionPipeline

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, DDPMScheduler, UNet2DModel
from ddpm_hf.cli import push, sample
from ddpm_hf.training.publish import model_push
from tests.cli.test_sample import make_model
from tests.hub_clients import Clients, environment
from tests.hub_server import Hub, failing

PIPELINES = Path(__file__).parents[2] / "pipelines"


def put(hub: Hub, name: str, folder: Path, **access: bool) -> str:
    """A pipeline folder as a repository; the hash of its commit."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return hub.add(name, **access).put(files)


# For a process in which this package cannot be imported.
PLAIN = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ddpm_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch, diffusers
try:
    import ddpm_hf
except ModuleNotFoundError:
    pixels = []
    for cls in (diffusers.DiffusionPipeline, diffusers.DDPMPipeline, getattr(diffusers, sys.argv[2])):
        pipe = cls.from_pretrained(sys.argv[1])
        options = {"generator": torch.Generator().manual_seed(5), "num_inference_steps": 3, "output_type": "np"}
        pixels.append(pipe(batch_size=2, **options).images.tolist())
    print(json.dumps({"class": type(pipe).__name__, "pixels": pixels}))
"""


def pixels_of(source: str) -> list[Any]:
    pipe = DDPMCustomPipeline.from_pretrained(source)
    of_seeds = pipe(seeds=[3, 4], num_inference_steps=3, output_type="np").images.tolist()
    generator = torch.Generator().manual_seed(5)
    of_generator = pipe(batch_size=2, generator=generator, num_inference_steps=3, output_type="np").images.tolist()
    return [of_seeds, of_generator]


def test_trained_pushed_and_pulled_gives_the_same_pixels_also_without_this_package(
    clients: Clients, hub: Hub, tmp_path: Path
) -> None:
    # At the last timestep, where trailing ones start, diffusers' rounding is multiplied by 1 / sqrt(alpha_bar) = 157.
    arguments = ["--training.steps", 2, "--evaluation.timestep_spacing", "leading"]
    hub_options = ["--push_to_hub", "--hub_model_id", "me/round"]
    status, said = clients.trained(tmp_path / "run", *arguments, *hub_options, HF_TOKEN="hf_me")
    assert status == 0, said
    local, pulled = (clients.result(pixels_of, source) for source in (tmp_path / "run", "me/round"))
    assert pulled == local

    index = json.loads(hub.model("me/round").files()["model_index.json"])
    command = [sys.executable, "-c", PLAIN, "me/round", index["_class_name"]]
    process = subprocess.run(
        command, env=environment(hub, tmp_path / "fresh"), capture_output=True, text=True, check=False, timeout=120
    )
    assert process.returncode == 0, process.stderr
    plain = json.loads(process.stdout.splitlines()[-1])
    assert index["_class_name"] == plain["class"] == "DDIMPipeline"
    for pixels in plain["pixels"]:  # their coefficients are rounded to float32, which shows in the last bits of a float
        theirs, ours = torch.tensor(pixels), torch.tensor(local[1])
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
        assert torch.equal((theirs * 255).round(), (ours * 255).round())


def load_in_every_way(name: str, first: str) -> list[str]:
    """What each way gives, for comparison: the first parameter's value and type."""

    def of(unet: Any) -> str:
        weight = next(unet.parameters())
        return f"{type(unet).__module__} {weight.dtype} {weight.flatten()[0].item():.4f}"

    pipe = DDPMCustomPipeline.from_pretrained(name)
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # what the environment variable sets
    offline = DDPMCustomPipeline.from_pretrained(name)
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    assert type(pipe.scheduler) is type(offline.scheduler) is DDIMScheduler
    assert type(DDPMScheduler.from_pretrained(name, subfolder="scheduler")) is DDPMScheduler
    theirs = DDPMCustomPipeline.from_pretrained(
        name, unet=diffusers.UNet2DModel.from_pretrained(name, subfolder="unet", use_safetensors=True)
    )
    return [
        of(pipe.unet),
        of(offline.unet),
        of(DDPMCustomPipeline.from_pretrained(name, local_files_only=True).unet),
        of(UNet2DModel.from_pretrained(name, subfolder="unet")),
        of(theirs.unet),
        of(DDPMCustomPipeline.from_pretrained(name, revision=first).unet),
        of(DDPMCustomPipeline.from_pretrained(name, variant="ema0_5").unet),
        of(DDPMCustomPipeline.from_pretrained(name, torch_dtype=torch.bfloat16).unet),
    ]


def test_every_option_of_from_pretrained_works_by_id(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    pipe = DDPMCustomPipeline.from_pretrained(make_model(tmp_path / "model"))

    def revised(value: float) -> Path:
        next(pipe.unet.parameters()).data.fill_(value)
        pipe.save_pretrained(tmp_path / str(value))
        return tmp_path / str(value)

    first = put(hub, "me/ways", revised(1.0), private=True)
    hub.model("me/ways").put({"unet/diffusion_pytorch_model.ema0_5.safetensors": weights(revised(2.0))})
    hub.model("me/ways").put({"unet/diffusion_pytorch_model.safetensors": weights(revised(3.0))})
    ours = "ddpm_hf.models.unet_2d torch.float32"
    assert clients.result(load_in_every_way, "me/ways", first, HF_TOKEN="hf_me") == [
        *[f"{ours} 3.0000"] * 5,
        f"{ours} 1.0000",
        f"{ours} 2.0000",
        "ddpm_hf.models.unet_2d torch.bfloat16 3.0000",
    ]


def weights(folder: Path) -> bytes:
    return (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def push_twice(folder: str, name: str, token: str) -> list[str]:
    pipe = DDPMCustomPipeline.from_pretrained(folder)
    pipe.push_to_hub(name, token=token)
    path = huggingface_hub.hf_hub_download(name, "README.md", token=token)
    edited = Path(path).read_text().replace("## Limits", "## Limits, as I see them") + "\nMy own words.\n"
    huggingface_hub.upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=name, token=token)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.push_to_hub(name, token=token, private=True)
    return [edited, type(DDPMCustomPipeline.from_pretrained(name, token=token).scheduler).__name__]


def test_a_pipeline_pushes_itself_with_a_card_and_no_path(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "secretuser")
    edited, scheduler = clients.result(push_twice, folder, "me/pushed", "hf_me")
    assert scheduler == "DDPMScheduler"
    files = hub.model("me/pushed").files()
    assert files["README.md"].decode() == edited
    assert "library_name: diffusers" in edited
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]


def pull(name: str, options: dict[str, Any]) -> str:
    try:
        DDPMCustomPipeline.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        return str(error)
    return "it was loaded"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("me/hidden", {}, "me/hidden is not on the Hub, or is private and not for this token"),
        ("me/hidden", {"token": "hf_wrong"}, "the Hub does not take the token for me/hidden"),
        ("me/hidden", {"token": "hf_me"}, "it was loaded"),
        ("me/nowhere", {}, "me/nowhere is not on the Hub"),
        ("you/gated", {"token": "hf_me"}, "you/gated is gated: ask for access"),
        ("me/open", {"revision": "nope"}, "me/open has no such revision"),
        ("me/bert", {}, "me/bert has no model_index.json: it holds something else"),
        ("me/stable", {}, "me/stable holds a StableDiffusionPipeline"),
        ("me/pickled", {}, "safetensors"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(
    clients: Clients, hub: Hub, tmp_path: Path, name: str, options: dict[str, Any], sentence: str
) -> None:
    model = make_model(tmp_path / "model")
    put(hub, "me/hidden", model, private=True)
    put(hub, "me/open", model)
    put(hub, "you/gated", model, gated=True)
    hub.add("me/bert", files={"config.json": b"{}"})
    put(hub, "me/pickled", model)
    hub.model("me/pickled").put({"unet/diffusion_pytorch_model.bin": b"x"})
    hub.model("me/pickled").remove("unet/diffusion_pytorch_model.safetensors")
    parts = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    hub.add("me/stable", files={"model_index.json": json.dumps(parts).encode()})
    said = clients.result(pull, name, options)
    assert sentence in said
    assert "\n" not in said


def test_the_command_samples_by_id_and_says_which_commit(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    commit = put(hub, "me/drawn", make_model(tmp_path / "model"))
    few = ["--num_images", 3, "--num_inference_steps", 2, "--threads", 1, "--quiet"]
    for model, folder in ((tmp_path / "model", "local"), ("me/drawn", "pulled")):
        status, said = clients.run(sample.main, *few, "--model", model, "--output", tmp_path / folder)
        assert status == 0, said
    images = [(tmp_path / folder / "000000" / "000002.png").read_bytes() for folder in ("local", "pulled")]
    assert images[0] == images[1]
    settings = json.loads((tmp_path / "pulled" / "manifest.json").read_text())["settings"]
    assert (settings["model"], settings["revision"]) == ("me/drawn", commit)
    options = ["--revision", "nope", "--output", tmp_path / "none"]
    status, said = clients.run(sample.main, *few, "--model", "me/drawn", *options)
    assert (status, "me/drawn has no such revision" in said, len(said.splitlines())) == (2, True, 1), said


def draw_with_each(name: str) -> list[str]:
    """With both loaders and all the files of pipelines/, which the repository holds."""
    made = []
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for loader in (DiffusionPipeline, DDPMCustomPipeline):
        for file in ("class_guidance", "ddim_interpolation", "repaint", "variations"):
            repository = "me/conditional" if file == "class_guidance" else name
            pipe = loader.from_pretrained(repository, custom_pipeline=file, trust_remote_code=True)
            pipe.set_progress_bar_config(disable=True)
            if file == "class_guidance":
                result = pipe([0, 1], num_inference_steps=2).images[0]
            elif file == "ddim_interpolation":
                result = pipe(images[0], images[1], num_images=2, num_inference_steps=2).images
            elif file == "repaint":
                result = pipe(images, images[0] > 0, num_inference_steps=2).images
            else:
                result = pipe(images, num_inference_steps=2).images
            made.append(f"{type(pipe).__name__} {len(result)} {result[0].size}")
    return made


def test_custom_pipelines_load_from_a_model_repository(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    code = {path.name: path.read_bytes() for path in PIPELINES.glob("*.py") if path.name != "__init__.py"}
    put(hub, "me/plain", make_model(tmp_path / "plain"))
    put(hub, "me/conditional", make_model(tmp_path / "conditional", num_class_embeds=3))
    for name in ("me/plain", "me/conditional"):
        hub.model(name).put(code)
    kinds = ("ClassGuidance", "DDIMInterpolation", "RePaint", "Variations")
    assert clients.result(draw_with_each, "me/plain") == [f"{kind}Pipeline 2 (8, 8)" for kind in kinds] * 2


def pull_what_is_damaged(name: str, file: str, place: int) -> list[str]:
    """Load; damage a file in the cache; load again online; damage it again; load offline."""
    said = [weights_of(name)]
    path = Path(huggingface_hub.hf_hub_download(name, file))
    for offline in (False, True):
        blob = path.resolve()
        content = bytearray(blob.read_bytes())
        content[place] ^= 1
        blob.write_bytes(content)
        huggingface_hub.constants.HF_HUB_OFFLINE = offline
        said.append(weights_of(name))
        said.append(str(path.exists() and path.read_bytes() == bytes(content)))
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    return [*said, weights_of(name)]


def weights_of(name: str) -> str:
    try:
        return f"{next(DDPMCustomPipeline.from_pretrained(name).unet.parameters()).double().sum().item()}"
    except (OSError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize(
    ("file", "place"), [("unet/diffusion_pytorch_model.safetensors", -1), ("scheduler/scheduler_config.json", 30)]
)
def test_a_damaged_file_in_the_cache_is_fetched_anew(
    clients: Clients, hub: Hub, tmp_path: Path, file: str, place: int
) -> None:
    name = f"me/damaged{place % 7}"
    put(hub, name, make_model(tmp_path / "model"))
    said = clients.result(pull_what_is_damaged, name, file, place)
    first, again, is_damaged, offline, _, later = said
    assert first == again == later
    assert is_damaged == "False"
    assert offline != first
    assert "\n" not in offline


def test_a_third_of_all_requests_may_fail(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    put(hub, "me/shaky", make_model(tmp_path / "model"))
    hub.faults = [failing(0.3, seed=2)]
    assert clients.result(pull, "me/shaky", {}) == "it was loaded"


def push_flat(folder: str, name: str) -> list[str]:
    sys.argv = ["ddpm-hf-push", folder, name]
    push.main()
    return [weights_of(name), weights_of(folder)]


def flat(model: Path, folder: Path) -> Path:
    """As google/ddpm-cifar10-32: all files side by side."""
    folder.mkdir()
    for path in [*model.glob("*.json"), *model.glob("*/*")]:
        shutil.copy(path, folder / path.name)
    return folder


def test_a_flat_folder_is_pushed_whole(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    folder = flat(make_model(tmp_path / "model"), tmp_path / "flat")
    pushed, here = clients.result(push_flat, str(folder), "me/flat", HF_TOKEN="hf_me")
    assert pushed == here
    files = {"model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    assert hub.model("me/flat").files().keys() == {".gitattributes", "README.md", *files}


@pytest.mark.parametrize(
    ("lost", "added", "sentence"),
    [
        ("unet/diffusion_pytorch_model.safetensors", None, "has no weights"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin", "ddpm-hf-convert"),
        ("unet/config.json", None, "no config.json"),
    ],
)
def test_a_folder_without_a_whole_model_is_not_pushed(
    tmp_path: Path, lost: str, added: str | None, sentence: str
) -> None:
    model = Path(make_model(tmp_path / "model"))
    (model / lost).unlink()
    if added:
        (model / added).write_bytes(b"pickle")
    with pytest.raises(ValueError, match=sentence):
        model_push(model, "me/model", "mit")
