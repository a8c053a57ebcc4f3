"""Runs that start from a model of the Hub: of which commit, on every process, and what the card says of it."""

import json
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator

from ddpm_hf import DDPMCustomPipeline
from ddpm_hf.launch import start_processes
from ddpm_hf.manifest import weights_hash
from ddpm_hf.training.base_model import load_base_model
from tests.hub.test_pull import put
from tests.hub_clients import Clients
from tests.hub_server import Hub
from tests.runs import worlds
from tests.training.test_init_from import saved

FITTING = {"block_out_channels": (8, 8), "layers_per_block": 1, "attention_head_dim": None}


def test_the_card_names_the_model_and_its_commit(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", **FITTING)
    first = put(hub, "me/base", base)
    expected = weights_hash(DDPMCustomPipeline.from_pretrained(base).unet)
    other = saved(tmp_path / "other", center_input_sample=True, **FITTING)  # which would not fit
    hub.model("me/base").put({p.relative_to(other).as_posix(): p.read_bytes() for p in files_in(other)})
    options = ["--init_from", f"me/base@{first}", "--training.steps", 1]
    pushing = ["--push_to_hub", "--hub_model_id", "me/tuned"]
    status, said = clients.trained(tmp_path / "run", *options, *pushing, HF_TOKEN="hf_me")
    assert status == 0, said
    files = hub.model("me/tuned").files()
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("me/base", "finetune")
    assert f"[me/base](https://huggingface.co/me/base) at commit `{first}` (their SHA-256: `{expected}`)." in card
    recorded = json.loads(files["environment.json"])["base_model"]
    assert (recorded["id"], recorded["commit"], recorded["weights_sha256"]) == ("me/base", first, expected)

    # The files are in the cache, so the same works where the Hub cannot be reached.
    status, said = clients.trained(tmp_path / "offline", *options, HF_HUB_OFFLINE="1")
    assert status == 0, said
    offline = json.loads((tmp_path / "offline" / "environment.json").read_text())
    assert offline["base_model"] == recorded


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def hash_in_process(base: str) -> list[object]:
    accelerator: Accelerator = start_processes(1)
    found = load_base_model(base, accelerator)
    return [weights_hash(found.unet), found.commit, found.id]


def test_a_branch_that_moves_gives_all_processes_one_commit(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    first = put(hub, "me/moving", saved(tmp_path / "base"))
    expected = weights_hash(DDPMCustomPipeline.from_pretrained(tmp_path / "base").unet)
    other = DDPMCustomPipeline.from_pretrained(tmp_path / "base")
    next(other.unet.parameters()).data.zero_()
    other.save_pretrained(tmp_path / "other")
    newer = {p.relative_to(tmp_path / "other").as_posix(): p.read_bytes() for p in files_in(tmp_path / "other")}
    moves = []

    def move(request: str) -> None:
        """The branch moves once somebody has looked where it is."""
        if "/me/moving/tree/" in request and not moves:
            moves.append(hub.model("me/moving").put(newer))

    hub.faults.append(move)
    started = [clients.start(hash_in_process, "me/moving", **world) for world in worlds(2)]
    assert [one.wait() for one in started] == [0, 0], [one.said() for one in started]
    found = [json.loads(one.said().splitlines()[-1]) for one in started]
    assert len(moves) == 1
    assert found == [[expected, first, "me/moving"]] * 2


def test_a_model_on_the_hub_in_half_precision_alone(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    pipe = DDPMCustomPipeline.from_pretrained(saved(tmp_path / "base"))
    pipe.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    put(hub, "me/half", tmp_path / "half")
    assert clients.result(hash_in_process, "me/half")[0] == weights_hash(pipe.unet.float())


def test_what_is_not_there_is_named(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    put(hub, "me/there", saved(tmp_path / "base"))
    for name, said in {"me/nowhere": "is not on the Hub", "me/there@nowhere": "has no such revision"}.items():
        status, printed = clients.trained(tmp_path / "run", "--init_from", name)
        assert status == 2
        [sentence] = [line for line in printed.splitlines() if "error:" in line]
        assert f"--init_from {name}: " in sentence
        assert said in sentence
