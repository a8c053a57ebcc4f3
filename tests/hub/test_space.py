"""The page as a Space: what is pushed, nothing private in it, and nothing of somebody else's overwritten."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import SpaceCard

from ddpm_hf.cli import serving
from ddpm_hf.cli.demo import DemoConfig
from tests.demo.models import make_model
from tests.hub_clients import Clients
from tests.hub_server import Hub, dropped
from tests.runs import finished

GRADIO = "6.31.0"


def push(model: str, space: str, gradio: str = GRADIO) -> None:
    """As ddpm-hf-demo does, on a machine that has this version of Gradio."""
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: gradio if name == "gradio" else version(name)
    import ddpm_hf.demo.space

    ddpm_hf.demo.space.version = importlib.metadata.version
    serving.run(DemoConfig(model, push_to_hub=space, threads=1))


def pushed(clients: Clients, model: object, space: str, *more: str, token: str = "hf_me") -> tuple[int, str]:
    return clients.run(push, str(model), space, *more, HF_TOKEN=token)


def card_of(files: dict[str, bytes]) -> dict[str, Any]:
    card: dict[str, Any] = SpaceCard(files["README.md"].decode()).data.to_dict()
    return card


def test_a_space_of_a_run_holds_all_that_the_page_needs_and_nothing_private(
    clients: Clients, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "secretuser").mkdir()
    run = finished(
        tmp_path / "secretuser" / "run", "--training.steps", 2, "--data.cache_dir", tmp_path / "secretuser" / "cache"
    )
    status, said = pushed(clients, run, "me/page")
    assert status == 0, said
    assert "/spaces/me/page" in said
    files = hub.space("me/page").files()
    for name in ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "config.yaml", "metrics.jsonl"):
        assert f"model/{name}" in files
    weights = run / "unet" / "diffusion_pytorch_model.safetensors"
    assert files["model/unet/diffusion_pytorch_model.safetensors"] == weights.read_bytes()
    for name in ("demo/page.py", "pipelines/repaint.py", "configs/train/digits.yaml", "assets/digits/train.parquet"):
        assert f"ddpm_hf/{name}" in files
    for name, content in files.items():
        for secret in ("hf_me", "secretuser", str(tmp_path), str(Path.home()) + "/"):
            assert secret.encode() not in content, f"{secret} in {name}"
    assert "Source('model')" in files["app.py"].decode()
    wanted = {"title": "page", "sdk": "gradio", "sdk_version": GRADIO, "app_file": "app.py", "license": "apache-2.0"}
    card = card_of(files)
    assert {key: card[key] for key in wanted} == wanted
    assert re.fullmatch(r"3\.\d+", str(card["python_version"]))
    lines = files["requirements.txt"].decode().split()
    assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", line) for line in lines), lines
    assert {f"gradio=={GRADIO}", f"diffusers=={importlib.metadata.version('diffusers')}"} <= {*lines}
    assert not any("+" in line for line in lines)


def test_a_model_of_the_hub_is_named_with_its_commit(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    there = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    model = hub.add("me/spaced", files=there)
    commit = model.branches["main"]
    model.branches["v1"] = commit
    model.put({"NOTES.md": b"later"})
    status, said = pushed(clients, "me/spaced@v1", "me/of-the-hub")
    assert status == 0, said
    files = hub.space("me/of-the-hub").files()
    assert f"Source('me/spaced@{commit}')" in files["app.py"].decode()
    assert not any(name.startswith("model/") for name in files)
    assert card_of(files)["models"] == ["me/spaced"]


def test_the_next_push_brings_new_versions_and_keeps_what_a_user_wrote(
    clients: Clients, hub: Hub, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    assert pushed(clients, model, "me/again")[0] == 0
    space = hub.space("me/again")
    readme = space.files()["README.md"].decode()
    space.put(
        {"README.md": readme.replace("title: again", "title: My digits").encode() + b"\nMine.\n", "LICENSE": b"x"}
    )
    hub.faults.append(dropped("POST .*/commit", when="after"))
    status, said = pushed(clients, model, "me/again", "6.40.0")
    assert status == 0, said
    files = space.files()
    assert card_of(files)["title"] == "My digits"
    assert card_of(files)["sdk_version"] == "6.40.0"
    assert "gradio==6.40.0" in files["requirements.txt"].decode()
    assert files["README.md"].endswith(b"Mine.\n")
    assert files["LICENSE"] == b"x"


def test_what_cannot_be_pushed_is_one_sentence_and_changes_nothing(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    other = hub.add("me/theirs", "spaces", {"app.py": b"print()"})
    before = other.files()
    status, said = pushed(clients, model, "me/theirs")
    assert status == 69
    assert "me/theirs holds something else (app.py, and no ddpm_hf/demo/page.py)" in said
    assert other.files() == before
    assert pushed(clients, model, "me/none", token="hf_reader")[0] == 69
    assert ("spaces", "me/none") not in hub.repositories
    status, said = clients.run(push, str(tmp_path / "missing" / "folder" / "x"), "me/none", HF_TOKEN="hf_me")
    assert status != 0
    assert "does not exist" in said
    assert ("spaces", "me/none") not in hub.repositories


def test_the_front_matter_is_yaml(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    assert pushed(clients, make_model(tmp_path / "model"), "me/front")[0] == 0
    _, front, _ = hub.space("me/front").files()["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["sdk"] == "gradio"
