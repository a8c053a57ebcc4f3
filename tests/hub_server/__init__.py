"""A small Hub on this machine, against which the real clients run: models, data sets, LFS, permissions, faults."""

from tests.hub_server.faults import cut_short, dropped, failing, failing_at, rate_limited, slow
from tests.hub_server.server import Account, Hub

__all__ = ["Account", "Hub", "cut_short", "dropped", "failing", "failing_at", "rate_limited", "slow"]
