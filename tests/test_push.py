"""Training that pushes: what arrives, whatever the Hub does meanwhile, and what training itself gives."""

import json
from pathlib import Path

import pytest

from tests.hub_clients import Clients
from tests.hub_server import Hub

SHORT = ["--training.steps", 4, "--training.checkpoint_every", 2, "--training.lr_schedule", "constant"]


def test_a_run_is_pushed(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    status, said = clients.trained(
        tmp_path / "run",
        *SHORT,
        "--push_to_hub",
        "--hub_model_id",
        "me/first",
        "--hub_strategy",
        "checkpoints",
        HF_TOKEN="hf_me",
    )
    print(said)
    print("\n".join(hub.requests))
    print({k: len(v) for k, v in hub.model("me/first").files().items()})
    print({k: len(v) for k, v in hub.model("me/first").files("checkpoints").items()})
    print(hub.model("me/first").titles(), hub.model("me/first").titles("checkpoints"))
    print(hub.model("me/first").files()["README.md"].decode())
    assert status == 0
    assert 0
