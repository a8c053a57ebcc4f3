"""Training that pushes: what arrives, whatever the Hub does meanwhile, and what training itself gives."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from packaging.version import Version

from ddpm_hf.cli import push
from tests.hub_clients import Clients
from tests.hub_server import Account, Hub, cut_short, dropped, failing, rate_limited, slow
from tests.runs import measured, tensors_of

STEPS = 4
SHORT = ["--training.steps", STEPS, "--training.checkpoint_every", 2, "--training.ema_decay", "[0.9,0.5]"]
PIPELINE = {
    *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
    *("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.ema0_5.safetensors"),
}
OF_A_RUN = {"README.md", "config.yaml", "environment.json", "metrics.json", "metrics.jsonl", "samples/grid.png"}
TRAINING = {"training/optimizer.safetensors", "training/state.json", "training/weights.safetensors"}


def pushing(name: str, strategy: str = "every_save") -> list[str]:
    return ["--push_to_hub", "--hub_model_id", f"me/{name}", "--hub_strategy", strategy]


@pytest.fixture(scope="module")
def plain(_clients: Clients, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a push."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    status, said = _clients.trained(folder, *SHORT)
    assert status == 0, said
    return folder


def assert_same_training(run: Path, other: Path) -> None:
    mine, theirs = tensors_of(run, STEPS), tensors_of(other, STEPS)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert measured(run) == measured(other)
    for file in ("unet/diffusion_pytorch_model.safetensors", "samples/grid.png"):
        assert (run / file).read_bytes() == (other / file).read_bytes()


def assert_whole(hub: Hub, name: str, run: Path) -> None:
    """The repository holds all of a finished run, with its weights to the byte."""
    files = hub.model(name).files()
    assert files.keys() == {".gitattributes", *PIPELINE, *OF_A_RUN}
    for file in (*PIPELINE, "samples/grid.png"):
        if not file.endswith(".json"):
            assert files[file] == (run / file).read_bytes(), file
    assert json.loads(files["metrics.json"])["scores"] == json.loads((run / "metrics.json").read_text())["scores"]


def card_of(repository: str) -> dict[str, Any]:
    info = huggingface_hub.model_info(repository)
    assert info.card_data is not None
    if Version(huggingface_hub.__version__) >= Version("2"):  # before, it asks huggingface.co and no other Hub
        huggingface_hub.ModelCard.load(repository).validate()
    results = [vars(result) for result in info.card_data.eval_results]
    return {**info.card_data.to_dict(), "results": results, "text": huggingface_hub.ModelCard.load(repository).text}


def test_a_push_holds_all_that_it_should_and_nothing_private(
    clients: Clients, hub: Hub, plain: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "secretuser"
    arguments = [*SHORT, *pushing("whole", "checkpoints"), "--hub_token", "hf_me", "--data.cache_dir", home / "cache"]
    status, said = clients.trained(home / "run", *arguments)
    assert status == 0, said
    assert_same_training(home / "run", plain)
    assert_whole(hub, "me/whole", home / "run")
    checkpoint = {f"step-{STEPS}/{file}" for file in PIPELINE | TRAINING}
    assert hub.model("me/whole").files("checkpoints").keys() == {".gitattributes", "metrics.jsonl", *checkpoint}
    assert hub.model("me/whole").titles("checkpoints")[:2] == ["Checkpoint of step 4", "Checkpoint of step 2"]

    everything = [f for branch in ("main", "checkpoints") for f in hub.model("me/whole").files(branch).items()]
    for name, content in everything:
        assert Path(name).suffix in (".json", ".jsonl", ".yaml", ".md", ".png", ".safetensors", ""), name
        for secret in ("hf_me", "secretuser", str(tmp_path), "/somewhere", str(Path.home())):
            assert secret.encode() not in content, f"{secret} in {name}"
    command = json.loads(dict(everything)["environment.json"])["command"]
    assert command.startswith("train_accelerate.py ")
    assert "--output_dir run --training.steps 4" in command
    for file in home.joinpath("run").rglob("*.*"):  # the token stays out of what is not pushed too
        assert file.is_dir() or b"hf_me" not in file.read_bytes()


def test_the_card_is_valid_and_its_scores_are_read_back(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    status, said = clients.trained(tmp_path / "run", *SHORT, *pushing("card", "end"), HF_TOKEN="hf_me")
    assert status == 0, said
    card = clients.result(card_of, "me/card", HF_TOKEN="hf_me")
    wanted = {"license": "apache-2.0", "library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}
    assert {key: card[key] for key in wanted} == wanted
    assert len(card["tags"]) == len(set(card["tags"])) > 0
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]
    assert {result["metric_type"]: result["metric_value"] for result in card["results"]} == {
        name: pytest.approx(entry["samples"], abs=1e-6) for name, entry in scores.items()
    }
    fid = card["results"][0]
    assert (fid["metric_name"], fid["dataset_name"], fid["dataset_split"]) == ("FID of 8 images", "digits", "train")
    assert (fid["metric_args"]["extractor"], len(fid["metric_args"]["extractor_sha256"])) == ("digits", 64)
    for part in ("![Samples](samples/grid.png)", "ddpm-hf-sample --model me/card", "## Training", "## Limits"):
        assert part in card["text"]


FAULTS: dict[str, Callable[[], Any]] = {
    "30% of requests fail": lambda: failing(0.3, seed=1),
    "an upload is dropped": lambda: dropped("PUT /lfs", times=2),
    "the answer to a commit is lost": lambda: dropped("POST .*/commit", times=2, when="after"),
    "a body ends in the middle": lambda: cut_short("POST .*/preupload"),
    "429": lambda: rate_limited("POST .*/(preupload|commit)", times=3, retry_after=1),
    "slow": lambda: slow(0.05),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_gets_through_and_training_is_the_same(
    clients: Clients, hub: Hub, plain: Path, tmp_path: Path, fault: str
) -> None:
    hub.faults.append(FAULTS[fault]())
    status, said = clients.trained(tmp_path / "run", *SHORT, *pushing("troubled"), HF_TOKEN="hf_me")
    assert status == 0, said
    assert_same_training(tmp_path / "run", plain)
    assert_whole(hub, "me/troubled", tmp_path / "run")
    commits = hub.model("me/troubled").commits
    assert all(c.parent is None or c.files != commits[c.parent].files for c in commits.values())  # none came twice


def test_a_card_that_is_edited_while_we_push_keeps_the_edit(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    edits: list[str] = []

    def edit(request: str) -> None:
        if "/commit/main" in request and not edits:
            edits.append(hub.model("me/edited").put({"README.md": b"---\nlicense: mit\n---\nCite me.\n"}))

    hub.faults.append(edit)
    status, said = clients.trained(tmp_path / "run", *SHORT, *pushing("edited", "end"), HF_TOKEN="hf_me")
    assert status == 0, said
    assert edits
    card = hub.model("me/edited").files()["README.md"].decode()
    assert "license: mit" in card
    assert "library_name: diffusers" in card
    assert card.endswith("Cite me.\n")


@pytest.mark.parametrize("end", ["the token expires", "the Hub is gone"])
def test_a_push_that_fails_is_told_and_finished_later(
    clients: Clients, hub: Hub, plain: Path, tmp_path: Path, end: str
) -> None:
    hub.accounts["hf_short"] = Account("me", requests_left=8 if end == "the token expires" else None)
    if end == "the Hub is gone":
        hub.faults.append(lambda request: hub.vanish() if "preupload" in request else None)
    run = tmp_path / "run"
    status, said = clients.trained(run, *SHORT, *pushing("later", "checkpoints"), HF_TOKEN="hf_short")
    assert status == 69, said
    last = said.strip().splitlines()[-1]
    reason = {"the token expires": "does not take the token", "the Hub is gone": "cannot be reached"}[end]
    assert "everything is saved, and not all of it pushed (the Hub" in last
    assert reason in last
    assert f"'ddpm-hf-push {run} me/later --checkpoints' finishes that" in last
    assert "Traceback" not in said
    assert_same_training(run, plain)
    assert not list(run.glob(".push-*"))

    hub.faults.clear()
    hub.start()
    status, said = clients.run(push.main, run, "me/later", "--checkpoints", HF_TOKEN="hf_me")
    assert status == 0, said
    assert_whole(hub, "me/later", run)
    assert f"step-{STEPS}/training/optimizer.safetensors" in hub.model("me/later").files("checkpoints")
    before = hub.model("me/later").titles()
    assert clients.run(push.main, run, "me/later", "--checkpoints", HF_TOKEN="hf_me")[0] == 0
    assert hub.model("me/later").titles() == before


def test_a_signal_lets_a_push_end_and_tells_of_one_that_does_not(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    for name, fault in (("quick", slow(0.01)), ("stuck", failing(1.0, seed=0))):
        steps = ["--training.steps", 5000, "--training.checkpoint_every", 10, *pushing(name)]
        [run] = clients.train(tmp_path / name, *steps, HF_TOKEN="hf_me")
        while not hub.repositories or not hub.asked(f"POST .*{name}/(commit|preupload)"):
            time.sleep(0.01)
        hub.faults.append(fault)
        os.kill(run.pid, signal.SIGTERM)
        assert run.wait() == 75, run.said()
        step = int(re.findall(r"step (\d+) of 5000 is saved", run.said())[0])
        if name == "quick":
            assert hub.model("me/quick").titles()[0] == f"Model after {step} steps"
        else:
            assert f"'ddpm-hf-push {tmp_path / name} me/{name}' finishes that" in run.said()


def test_one_of_two_processes_creates_and_pushes(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    status, said = clients.trained(tmp_path / "run", *SHORT, *pushing("two", "end"), processes=2, HF_TOKEN="hf_me")
    assert status == 0, said
    assert_whole(hub, "me/two", tmp_path / "run")
    assert len(hub.asked("POST /api/repos/create")) == 1
    assert len(hub.asked("POST .*/commit/")) == 1


@pytest.mark.parametrize(
    ("name", "token", "sentence"),
    [
        ("me/new", None, "needs a token, and there is none; give --hub_token or HF_TOKEN"),
        ("me/new", "hf_wrong", "does not take the token for me/new: it has expired or is mistyped"),
        ("me/mine", "hf_reader", "the token may not write to me/mine"),
        ("me/new", "hf_reader", "the token may not write to me/new"),
        ("you/new", "hf_me", "the token may not write to you/new"),
        ("me/", "hf_me", "'me/' is no id of a model on the Hub; give OWNER/NAME"),
        ("digits", "hf_me", "'digits' is no id of a model on the Hub; give OWNER/NAME"),
        ("me/bert", "hf_me", "me/bert holds something else (config.json, model.safetensors, and no model_index.json)"),
        ("me/stable", "hf_me", "me/stable holds a pipeline of another kind"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_training(
    clients: Clients, hub: Hub, tmp_path: Path, name: str, token: str | None, sentence: str
) -> None:
    hub.add("me/mine")
    hub.add("me/bert", files={"config.json": b"{}", "model.safetensors": b"x"})
    hub.add("me/stable", files={"model_index.json": b'{"unet": ["diffusers", "UNet2DConditionModel"]}'})
    arguments = ["--push_to_hub", "--hub_model_id", name]
    status, said = clients.trained(tmp_path / "run", *SHORT, *arguments, **({"HF_TOKEN": token} if token else {}))
    assert status == 2, said
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_dry_run_does_not_ask_the_hub(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    status, said = clients.trained(tmp_path / "run", *pushing("dry"), "--dry_run", HF_TOKEN="hf_me")
    assert status == 0, said
    assert "of which nothing is left" in said
    assert not hub.asked("dry")


def test_another_machine_goes_on_from_the_hub_to_the_same_bits(
    clients: Clients, hub: Hub, plain: Path, tmp_path: Path
) -> None:
    status, said = clients.trained(tmp_path / "first", *SHORT, *pushing("moved", "checkpoints"), HF_TOKEN="hf_me")
    assert status == 0, said
    commits = hub.model("me/moved").commits
    early = next(key for key, commit in commits.items() if commit.title == "Checkpoint of step 2")
    status, said = clients.trained(tmp_path / "second", *SHORT, "--resume", f"hub:me/moved@{early}", HF_TOKEN="hf_me")
    assert status == 0, said
    assert_same_training(tmp_path / "second", plain)
    history = json.loads((tmp_path / "second" / "metrics.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [2]
    # The same command again, as a batch system gives it, goes on from what is newer here.
    status, said = clients.trained(tmp_path / "second", *SHORT, "--resume", f"hub:me/moved@{early}", HF_TOKEN="hf_me")
    assert status == 0, said
    assert_same_training(tmp_path / "second", plain)

    hub.add("me/empty")
    hub.add("me/hidden", private=True)
    for resume, sentence in {
        "hub:me/moved@nowhere": "me/moved has no such revision",
        "hub:me/empty@main": "no complete checkpoint is there; a run with --hub_strategy checkpoints puts one there",
        "hub:me/hidden": "me/hidden is not on the Hub, or is private and not for this token",
        "hub:me/": "'me/' is no id of a model",
    }.items():
        status, said = clients.trained(tmp_path / "third", *SHORT, "--resume", resume)
        assert (status, sentence in said, len(said.splitlines())) == (2, True, 1), said


def test_a_run_that_did_not_end_is_pushed_from_its_newest_checkpoint(
    clients: Clients, hub: Hub, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").symlink_to(plain / "checkpoints")
    status, said = clients.run(push.main, tmp_path, "me/half", "--hub_private_repo", HF_TOKEN="hf_me")
    assert status == 0, said
    assert hub.model("me/half").private
    assert hub.model("me/half").titles()[0] == f"Model after {STEPS} steps"
    for folder, sentence in (
        (tmp_path / "nowhere", "is no folder"),
        (plain / "samples", "neither model_index.json nor"),
    ):
        status, said = clients.run(push.main, folder, "me/half", HF_TOKEN="hf_me")
        assert (status, sentence in said) == (2, True), said
