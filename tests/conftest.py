"""What every test stands on: no network, few threads, our own cache folder."""

import os
import socket
import tempfile

# Before torch is loaded: on nets as small as the tests', a second thread costs more than it does, and far more beside
# another busy process.
os.environ["OMP_NUM_THREADS"] = "1"
# Read at import by huggingface_hub and datasets, so set before any test module is loaded.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ddpm_hf_tests_")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator

import pytest
import torch

from tests.hub_clients import Clients
from tests.hub_server import Account, Hub

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test at once."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise RuntimeError(f"this test tried to reach {address}; default tests need no network")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def _clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    with Hub() as hub:
        clients = Clients(hub, tmp_path_factory.mktemp("home"))
        yield clients
        clients.close()


@pytest.fixture
def clients(_clients: Clients) -> Clients:
    """Processes with the real clients, and in ``clients.hub`` an empty Hub where "hf_me" may write as "me"."""
    _clients.hub.reset()
    _clients.hub.accounts |= {"hf_me": Account("me"), "hf_reader": Account("me", can_write=False)}
    return _clients


@pytest.fixture
def hub(clients: Clients) -> Hub:
    """The Hub that ``clients`` see."""
    return clients.hub


@pytest.fixture
def rng() -> torch.Generator:
    """Seed 0."""
    return torch.Generator().manual_seed(0)
