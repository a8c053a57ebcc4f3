"""ddpm-hf-sample: the same images from the same seeds, whatever the batch, the processes and the interruptions."""

import errno
import json
import os
import random
import signal
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf import DDIMScheduler, DDPMCustomPipeline, UNet2DModel
from ddpm_hf.cli import drawing, sample
from ddpm_hf.cli.drawing import check_room
from ddpm_hf.cli.sample import SampleConfig
from ddpm_hf.data.sample_sets import load_images
from ddpm_hf.pixels import EIGHT_BITS
from ddpm_hf.sampling.image_files import sample_files
from ddpm_hf.sampling.plan import planned
from ddpm_hf.sampling.request import classes_of
from ddpm_hf.sampling.samplers import SAMPLERS
from ddpm_hf.training.downloads import local_folder
from tests.networks import TWO_LEVELS
from tests.runs import Started

IMAGES = 200


def make_model(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    blocks = TWO_LEVELS | {"block_out_channels": (8, 8)}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **blocks, **options)
    DDPMCustomPipeline(unet.eval(), DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def start(model: Path, folder: Path, *arguments: object, processes: int = 1) -> Started:
    few = ["--model", model, "--num_images", IMAGES, "--num_inference_steps", 4, "--threads", 1, "--batch_size", 64]
    return Started([*few, *arguments], folder, processes, main=sample.main)


def drawn(model: Path, folder: Path, *arguments: object, processes: int = 1) -> Path:
    run = start(model, folder, *arguments, processes=processes)
    assert run.wait() == [0] * processes, run.said()
    return folder


def refusal(model: Path, folder: Path, *arguments: object) -> str:
    """The one sentence of a command that ends with status 2."""
    run = start(model, folder, *arguments)
    assert run.wait() == [2], run.said()
    sentences = [line for line in run.said().splitlines() if "error:" in line]
    assert len(sentences) == 1, run.said()
    assert "Traceback" not in run.said()
    return sentences[0].partition("error: ")[2]


def files_of(folder: Path) -> dict[str, bytes]:
    """All files, without the manifest, which tells of the processes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def unbroken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With noise at every step, which must be that of the seed too."""
    return drawn(model, tmp_path_factory.mktemp("unbroken") / "samples", "--eta", 1)


def test_a_thousand_images_to_a_folder_under_the_name_of_their_seed(tmp_path: Path) -> None:
    files = sample_files(tmp_path, "png", EIGHT_BITS, 1)
    assert files.path(123) == tmp_path / "000000" / "000123.png"
    assert files.path(1999) == tmp_path / "001000" / "001999.png"


def test_two_processes_make_the_files_of_one(model: Path, unbroken: Path, tmp_path: Path) -> None:
    two = drawn(model, tmp_path / "two", "--eta", 1, processes=2)
    assert len(files_of(two)) == IMAGES
    assert files_of(two) == files_of(unbroken)


@pytest.mark.parametrize("batch_size", [7, IMAGES])
def test_another_batch_size_is_one_grey_level_away_at_most(
    model: Path, unbroken: Path, tmp_path: Path, batch_size: int
) -> None:
    other = drawn(model, tmp_path / "other", "--eta", 1, "--batch_size", batch_size)
    assert sorted(files_of(other)) == sorted(files_of(unbroken))
    difference = load_images(other).int() - load_images(unbroken).int()
    assert difference.abs().max() <= 1


def test_an_image_is_that_of_its_seed_wherever_the_run_begins(model: Path, unbroken: Path, tmp_path: Path) -> None:
    later = drawn(model, tmp_path / "later", "--eta", 1, "--seed", 100, "--num_images", 100)
    assert (load_images(later).int() - load_images(unbroken)[100:].int()).abs().max() <= 1
    assert sorted(files_of(later)) == sorted(files_of(unbroken))[100:]


def test_a_run_killed_five_times_ends_with_the_folder_of_an_unbroken_one(
    model: Path, unbroken: Path, tmp_path: Path
) -> None:
    chance, folder = random.Random(0), tmp_path / "killed"
    for _ in range(5):
        already = len(list(folder.rglob("*.png")))
        run = start(model, folder, "--eta", 1)
        goal = min(already + chance.randrange(1, 40), IMAGES - 1)
        while len(list(folder.rglob("*.png"))) <= goal and run.processes[0].is_alive():
            time.sleep(0.0005)
        run.send(signal.SIGKILL)
        run.wait()
    half = folder / "000000" / "000007.png"
    if half.exists():
        half.write_bytes(half.read_bytes()[:40])  # as a disk leaves it when the power goes
    drawn(model, folder, "--eta", 1)
    assert files_of(folder) == files_of(unbroken)
    said = start(model, folder, "--eta", 1)
    assert said.wait() == [0]
    assert f"all {IMAGES} images were there" in said.said()


def test_the_manifest_says_what_the_images_were_made_from(model: Path, unbroken: Path) -> None:
    manifest = json.loads((unbroken / "manifest.json").read_text())
    settings = manifest["settings"]
    assert settings["timesteps"] == [750, 500, 250, 0]
    assert (settings["first_seed"], settings["num_images"], settings["eta"]) == (0, IMAGES, 1)
    assert settings["model"] == str(model)
    assert settings["scheduler"]["class"] == "DDIMScheduler"
    assert settings["scheduler"]["beta_schedule"] == "linear"
    assert len(settings["weights_sha256"]) == 64
    assert manifest["environment"]["torch"] == version("torch")


def test_a_folder_of_other_settings_is_refused_with_what_differs(model: Path, unbroken: Path, tmp_path: Path) -> None:
    before = files_of(unbroken)
    said = refusal(model, unbroken, "--eta", 0)
    assert "holds results of other settings (eta 1.0 -> 0.0); give another --output" in said
    unet = DDPMCustomPipeline.from_pretrained(model).unet
    unet.conv_out.bias.data += 0.1
    trained_on = tmp_path / "trained_on"
    DDPMCustomPipeline(unet, DDIMScheduler(beta_schedule="scaled_linear")).save_pretrained(trained_on)
    said = refusal(trained_on, unbroken, "--eta", 1)
    for key in ("model", "weights_sha256", "scheduler"):
        assert f"{key} " in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "holds thesis.txt and no manifest.json" in refusal(model, tmp_path / "mine")
    assert files_of(unbroken) == before


def test_npz_is_that_of_adm_and_parquet_that_of_load_dataset(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_class_embeds=3)
    labels = ["--class_labels", "2,0-1", "--num_images", 20, "--batch_size", 8]
    pictures = load_images(drawn(model, tmp_path / "png", *labels))
    with np.load(drawn(model, tmp_path / "npz", *labels, "--format", "npz") / "samples.npz") as file:
        assert file["arr_0"].shape == (20, 8, 8, 1)
        assert file["arr_1"].tolist() == ([2, 0, 1] * 7)[:20]
    folder = drawn(model, tmp_path / "parquet", *labels, "--format", "parquet", "--seed", 0)
    dataset = datasets.load_dataset(str(folder), split="train")
    assert dataset["seed"][:] == list(range(20))
    assert dataset["label"][:] == ([2, 0, 1] * 7)[:20]
    assert np.array_equal(np.asarray(dataset[5]["image"]), pictures[5, 0].numpy())
    for kind in ("npz", "parquet"):
        assert torch.equal(load_images(tmp_path / kind), pictures)
        assert not (tmp_path / kind / "parts").exists()


def test_the_class_of_an_image_changes_it(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_class_embeds=3)
    few = ["--num_images", 6]
    one, other = (load_images(drawn(model, tmp_path / c, *few, "--class_labels", c)) for c in ("0", "1"))
    in_turn = load_images(drawn(model, tmp_path / "in_turn", *few, "--class_labels", "0-1"))
    assert not torch.equal(one, other)
    assert torch.equal(in_turn[::2], one[::2])
    assert torch.equal(in_turn[1::2], other[1::2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_scheduler_draws_each_batch_from_a_fresh_start(model: Path, name: str) -> None:
    """Many of diffusers' remember the steps before: a second batch must not start from the first one's."""

    def images(batch_size: int) -> Tensor:
        config = sample.SampleConfig(str(model), Path("unused"), scheduler=name)
        pipe, _ = drawing.load_pipeline(config, Accelerator(cpu=True))
        pipe.register_modules(scheduler=planned(config.request(), pipe.unet, pipe.scheduler, "it").scheduler)
        pipe.set_progress_bar_config(disable=True)
        seeds = [range(start, start + batch_size) for start in range(0, 4, batch_size)]
        return torch.cat([pipe(seeds=part, num_inference_steps=5, output_type="uint8").images for part in seeds])

    assert (images(2).int() - images(4).int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch_size", 0], "batch_size is 0 and must be at least 1"),
        (["--scheduler", "dimm"], "scheduler was given 'dimm' and takes one of ['ddim', 'ddpm'"),
        (["--num_inference_step", 3], "the nearest one is 'num_inference_steps'"),
        (["--class_labels", "1"], "knows no classes"),
        (["--scheduler", "ddpm", "--eta", 1], "the sampler ddpm has no eta, and eta is 1"),
        (["--scheduler", "unipc", "--timestep_spacing", "quadratic"], "use one of leading, linspace, trailing"),
        (["--num_inference_steps", 1, "--timestep_spacing", "leading"], "where images are nearly clean"),
        (["--num_inference_steps", 2000], "2000"),
        (["--model", "/no/such/folder"], "/no/such/folder does not exist"),
        (["--model", "nobody/nothing"], "nobody/nothing"),
        (["--format", "gif"], "format was given 'gif'"),
    ],
)
def test_wrong_settings_are_one_sentence(model: Path, tmp_path: Path, arguments: list[object], sentence: str) -> None:
    folder = tmp_path / "samples"
    assert sentence in refusal(model, folder, *arguments)
    assert not folder.exists()


def test_images_that_are_not_numbers_are_not_written(tmp_path: Path) -> None:
    pipe = DDPMCustomPipeline.from_pretrained(make_model(tmp_path / "model"))
    pipe.unet.conv_out.bias.data[:] = float("nan")
    pipe.save_pretrained(tmp_path / "spoilt")
    said = refusal(tmp_path / "spoilt", tmp_path / "samples")
    assert "64 of 64 images hold numbers that are not finite" in said
    assert not list((tmp_path / "samples").rglob("*.png"))


def a_full_disk_on_the_second_process() -> None:
    from ddpm_hf.sampling.one_image import PNG

    save = PNG.write

    def full(kind: PNG, path: Path, image: Any) -> None:
        if os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(kind, path, image)

    PNG.write = full  # type: ignore[method-assign]


def test_a_full_disk_on_any_process_is_one_sentence_and_the_rest_is_drawn_later(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "samples"
    words = ["--model", model, "--num_images", 64, "--batch_size", 16, "--num_inference_steps", 2, "--threads", 1]
    run = Started(words, output, processes=2, fault=a_full_disk_on_the_second_process, main=sample.main)
    assert run.wait() == [2, 2], run.said()
    said = [line for line in run.said().splitlines() if "error:" in line]
    assert len(said) == 1, run.said()
    assert "No space left on device" in said[0]
    assert ".png" in said[0]
    assert "32 of 64 images were made and stay, and the same command goes on" in said[0]
    assert "Traceback" not in run.said()
    again = Started(words, output, main=sample.main)
    assert again.wait() == [0], again.said()
    assert "32 images made" in again.said()


def test_a_place_that_is_a_file_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refusal(tmp_path / "no" / "model", tmp_path / "file")
    assert f"cannot be a folder, because {tmp_path / 'file'} is a file" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_sentence(model: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal(model, tmp_path / "samples")


@pytest.mark.parametrize(
    ("text", "classes"), [("3", [3]), ("1,4,7", [1, 4, 7]), ("0-3", [0, 1, 2, 3]), (" 2 , 0-1", [2, 0, 1])]
)
def test_classes_are_lists_and_ranges(text: str, classes: list[int]) -> None:
    assert [label for span in classes_of(text) for label in span] == classes


@pytest.mark.parametrize("text", ["", "cats", "-1", "1-", "-", "1.5", "1,,2", "1-2-3"])
def test_what_is_no_class_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="takes a form like 3, 1,4,7 or 0-9"):
        classes_of(text)


@pytest.mark.parametrize("text", ["0-99999999999", "9-0", "99999999999", f"0-{10**30}", "9" * 5000])
def test_a_range_of_classes_is_no_longer_than_any_model_has(text: str) -> None:
    """It was a list of a hundred thousand million labels before it was looked at."""
    with pytest.raises(ValueError, match="a range goes up, to 10,000,000 at most"):
        SampleConfig("m", Path("o"), class_labels=text)


def test_images_that_no_disk_holds_are_refused_with_how_many_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    config = SampleConfig("m", tmp_path / "new" / "o", num_images=30_000_000)
    block = os.statvfs(tmp_path).f_frsize
    with pytest.raises(ValueError, match=rf"where 1.0 GB are free; there is room for {10**9 // block}$"):
        check_room(config, 30_000_000, 3 * 32 * 32)
    check_room(config, 10**9 // block, 3 * 32 * 32)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**18))
    check_room(config, 30_000_000, 3 * 32 * 32)
    with pytest.raises(ValueError, match="an npz is put together in memory, which holds"):
        check_room(replace(config, num_images=10**9, format="npz"), 10**9, 3 * 256 * 256)


def test_classes_outside_the_model_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_class_embeds=3)
    assert "knows 3 classes; say which to draw" in refusal(model, tmp_path / "a")
    assert "has classes 0 to 2" in refusal(model, tmp_path / "a", "--class_labels", "0-3")
    assert "takes a form like" in refusal(model, tmp_path / "a", "--class_labels", "cats")


def test_no_class_is_not_a_class_to_guide_to(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", num_class_embeds=3)
    said = refusal(model, tmp_path / "a", "--class_labels", "0-2", "--guidance_scale", 2)
    assert 'has classes 0 to 1, and one more for "no class"' in said


def test_a_mistyped_folder_is_not_only_blamed_on_the_hub() -> None:
    with pytest.raises(OSError, match=r"runs/digts cannot be asked for.*nor is there a folder runs/digts on this"):
        local_folder("runs/digts", None, Accelerator())
    with pytest.raises(OSError, match=r"as HF_HUB_OFFLINE is set; unset it$"):
        local_folder("me/digits", "v1", Accelerator())
