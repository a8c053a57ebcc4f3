"""Data sets of a Hub: to train on, and of samples that are published."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
from packaging.version import Version
from PIL import Image

from ddpm_hf.cli import push, sample
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_image_data
from tests.cli.test_sample import make_model
from tests.hub_clients import Clients
from tests.hub_server import Hub, dropped


def parquet(first: int) -> dict[str, bytes]:
    pictures = [Image.fromarray(np.full((8, 8), first + i, dtype=np.uint8)) for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    file = io.BytesIO()
    datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 10}, features=features).to_parquet(file)
    return {"data/train-00000-of-00001.parquet": file.getvalue()}


def load(cache: str, options: dict[str, Any]) -> str:
    try:
        data = load_image_data(DataConfig(cache_dir=Path(cache), **options))
    except ValueError as error:
        return str(error)
    images, labels = data.batch(0, 20, 0, 20, seed=0)
    return f"{int(images.min())} to {int(images.max())}, labels {sorted(set(labels.tolist()))}"  # type: ignore[union-attr]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_comes_by_id_revision_and_token(clients: Clients, hub: Hub, tmp_path: Path, streaming: bool) -> None:
    repository = hub.add(f"me/pictures{streaming}", "datasets", private=True)
    first = repository.put(parquet(10))
    repository.put(parquet(100))
    # The refusals first: of what datasets has loaded once it takes its copy where the Hub refuses.
    ways = [({}, None, "cannot be accessed"), ({"revision": "nope"}, "hf_me", "'nope' doesn't exist")]
    ways += [({}, "hf_me", "100 to 119"), ({"revision": first}, "hf_me", "10 to 29")]
    for options, token, expected in ways:
        asked = {"name": repository.name, "streaming": streaming, **options}
        said = clients.result(load, tmp_path, asked, **({"HF_TOKEN": token} if token else {}))
        assert expected in said
        assert "HF_TOKEN" in said or token
        assert "\n" not in said


@pytest.mark.parametrize(
    ("token", "sentence"), [(None, "You must be authenticated to access it"), ("hf_me", "ask for access")]
)
def test_a_gated_data_set_is_named_as_one_before_training(
    clients: Clients, hub: Hub, tmp_path: Path, token: str | None, sentence: str
) -> None:
    hub.add("you/gated", "datasets", gated=True, files=parquet(0))
    env = {"HF_TOKEN": token} if token else {}
    small = ["--model.attention_head_dim", "8"]
    status, said = clients.trained(tmp_path / "run", "--data.name", "you/gated", *small, **env)
    assert (status, len(said.splitlines())) == (2, 1), said
    assert "'you/gated' is a gated dataset on the Hub" in said
    assert sentence in said
    assert not (tmp_path / "run").exists()


def samples_of(repository: str) -> dict[str, Any]:
    data = datasets.load_dataset(repository, split="train")
    card = huggingface_hub.DatasetCard.load(repository)
    if Version(huggingface_hub.__version__) >= Version("2"):  # before, it asks huggingface.co and no other Hub
        card.validate()
    return {"seeds": data["seed"][:], "labels": data["label"][:], "card": card.data.to_dict(), "text": card.text}


@pytest.mark.parametrize("lost", [False, True])
def test_samples_are_published_as_a_data_set(clients: Clients, hub: Hub, tmp_path: Path, lost: bool) -> None:
    model, folder, name = make_model(tmp_path / "model", num_class_embeds=3), tmp_path / "samples", f"me/drawn{lost}"
    few = ["--model", model, "--output", folder, "--num_images", 5, "--num_inference_steps", 2, "--threads", 1]
    asked = [*few, "--format", "parquet", "--class_labels", "0-2", "--push_to_hub", name, "--hub_license", "cc0-1.0"]
    if lost:
        hub.faults.append(dropped("POST .*/commit", times=20))
    status, said = clients.run(sample.main, *asked, HF_TOKEN="hf_me")
    if lost:
        assert (status, f"'ddpm-hf-push {folder} {name} --hub_license cc0-1.0' finishes that" in said) == (69, True), (
            said
        )
        hub.faults.clear()
        status, said = clients.run(push.main, folder, name, "--hub_license", "cc0-1.0", HF_TOKEN="hf_me")
    assert status == 0, said
    files = hub.dataset(name).files()
    assert files.keys() == {".gitattributes", "README.md", "manifest.json", "data/train-00000-of-00001.parquet"}
    assert not [file for file, content in files.items() if str(tmp_path).encode() in content]
    there = clients.result(samples_of, name)
    assert (there["seeds"], there["labels"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 0, 1])
    assert (there["card"]["license"], there["card"]["size_categories"]) == ("cc0-1.0", ["n<1K"])
    assert json.loads(files["manifest.json"])["settings"]["weights_sha256"] in there["text"]


def test_samples_that_cannot_be_published_are_not_drawn(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    few = ["--model", make_model(tmp_path / "model"), "--output", tmp_path / "samples", "--num_images", 5]
    for more, sentence in (
        (["--format", "parquet", "--push_to_hub", "you/drawn"], "the token may not write to you/drawn"),
        (["--format", "parquet", "--push_to_hub", "drawn"], "'drawn' is no id of a dataset"),
        (["--push_to_hub", "me/drawn"], "give --format parquet"),
    ):
        status, said = clients.run(sample.main, *few, "--threads", 1, *more, HF_TOKEN="hf_me")
        assert (status, sentence in said, len(said.splitlines())) == (2, True, 1), said
        assert not (tmp_path / "samples").exists()
