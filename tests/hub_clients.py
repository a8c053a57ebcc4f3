"""Commands and functions in processes of their own that see a local Hub in the place of the real one.

The libraries read HF_ENDPOINT and HF_HOME when they are imported, which takes seconds. So one process imports them for
all tests, and forks itself for each call; a repository of another name is as good as an empty cache.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.hub_server import Hub
from tests.runs import TINY, worlds

ROOT = Path(__file__).parents[1]


class Clients:
    """The process that forks, and what it is asked to do.

    Args:
        hub: The Hub that its children see.
        home: Their HF_HOME, and a folder for what they say.
    """

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub = hub
        self.environment = environment(hub, home)
        self._home, self._count = home, 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.hub_clients"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End it."""
        self._server.communicate()

    def start(
        self, main: Callable[..., Any], *arguments: object, fault: Callable[[], None] | None = None, **env: str
    ) -> "Started":
        """Call a function at the top level of a module, or a command's ``main`` with a command line.

        Args:
            main: What to call; with ``arguments`` in :data:`sys.argv` if it is named main.
            arguments: In the types of JSON.
            fault: Called in the child first.
            env: More environment variables.
        """
        self._count += 1
        said = self._home / f"{self._count}.said"
        task = {
            "call": [main.__module__, main.__name__],
            "fault": fault and [fault.__module__, fault.__name__],
            "arguments": [
                argument if isinstance(argument, int | list | dict) else str(argument) for argument in arguments
            ],
            "environment": env,
            "said": str(said),
        }
        return Started(self, self._ask(task), said)

    def run(
        self, main: Callable[..., Any], *arguments: object, fault: Callable[[], None] | None = None, **env: str
    ) -> tuple[int, str]:
        """Call it and wait: exit status, and all that was said."""
        started = self.start(main, *arguments, fault=fault, **env)
        return started.wait(), started.said()

    def result(self, function: Callable[..., Any], *arguments: object, **env: str) -> Any:
        """What a function returns, in the types of JSON."""
        status, said = self.run(function, *arguments, **env)
        assert status == 0, said
        return json.loads(said.splitlines()[-1])

    def train(
        self, folder: Path, *arguments: object, processes: int = 1, fault: Callable[[], None] | None = None, **env: str
    ) -> list["Started"]:
        """Start a tiny training run of several processes."""
        import train_accelerate

        command = [*TINY, "--output_dir", folder, *arguments]
        return [self.start(train_accelerate.main, *command, fault=fault, **world, **env) for world in worlds(processes)]

    def trained(self, folder: Path, *arguments: object, **options: Any) -> tuple[int, str]:
        """Run it to whatever end: exit status of the first process, and what it said."""
        runs = self.train(folder, *arguments, **options)
        statuses = [run.wait() for run in runs]
        return statuses[0], "".join(run.said() for run in runs)

    def _ask(self, task: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


class Started:
    """A process that has been started."""

    def __init__(self, clients: Clients, pid: int, said: Path) -> None:
        self.pid = pid
        self._clients, self._said = clients, said

    def wait(self) -> int:
        """Its exit status; minus the signal that killed it."""
        return self._clients._ask({"wait": self.pid})

    def said(self) -> str:
        """What it has printed so far."""
        return self._said.read_text()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """That of a process with the real clients; no token is among it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **inherited,
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        "NO_PROXY": "127.0.0.1",
    }


def _hurry() -> None:
    """Waits between attempts take a hundredth of their time."""
    import huggingface_hub.utils._http as http

    import ddpm_hf.hub.repository

    http.time = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))  # type: ignore[assignment]
    ddpm_hf.hub.repository.WAITS = tuple(seconds / 100 for seconds in ddpm_hf.hub.repository.WAITS)  # type: ignore[assignment]


def _serve() -> None:
    for module in ("ddpm_hf.training.run", "ddpm_hf.cli.drawing", "ddpm_hf.cli.pushing", "train_accelerate"):
        importlib.import_module(module)
    _hurry()
    for line in sys.stdin:
        task = json.loads(line)
        if "wait" in task:
            print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _be(task)


def _be(task: dict[str, Any]) -> None:
    output = os.open(task["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdin.close()
    status = 1
    try:
        os.environ |= task["environment"]
        if task["fault"]:
            _named(task["fault"])()
        function = _named(task["call"])
        if task["call"][1] == "main":
            sys.argv = [f"/somewhere/{task['call'][0]}.py", *map(str, task["arguments"])]
            function()
        else:
            print(json.dumps(function(*task["arguments"])))
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _named(name: list[str]) -> Any:
    return getattr(importlib.import_module(name[0]), name[1])


if __name__ == "__main__":
    _serve()
