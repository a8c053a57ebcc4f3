"""What of a run goes to the Hub, beside the training that it never stops, and how a checkpoint comes back from there.

The branch main holds the pipeline, its card, the grid of samples, the metrics, the manifests and the settings. The
branch "checkpoints" holds nothing but the newest checkpoint, optimizer state included, as step-N/, and metrics.jsonl.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars

from ddpm_hf.files import STAGED
from ddpm_hf.http_client import httpx
from ddpm_hf.hub.cards import Subject, model_card, read_json_if_there
from ddpm_hf.hub.downloads import fetched
from ddpm_hf.hub.public_files import Files, public, public_files
from ddpm_hf.hub.push import Push, command_to_finish
from ddpm_hf.hub.repository import AT_THE_START, PushError, Repository, api_of, explain, retried
from ddpm_hf.model_folder import network_in
from ddpm_hf.training.checkpoint_files import STATE, newest_complete, resealed, step_of

CHECKPOINTS = "checkpoints"
"""The branch that checkpoints are pushed to."""
PIPELINE = ("model_index.json", "unet/*", "scheduler/*")
FLAT_PIPELINE = ("model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model*")
"""With all files side by side, as in google/ddpm-cifar10-32."""
OF_THE_RUN = ("config.yaml", "environment.json", "metrics.jsonl")
BESIDE_A_FINISHED_PIPELINE = ("metrics.json", "manifest.json", "samples/grid.png")

Strategy = Literal["end", "every_save", "checkpoints"]


def model_push(run: Path, repository: str, license: str, checkpoint: Path | None = None) -> Push:
    """The model of a run or pipeline folder, for the branch main.

    Args:
        run: The folder.
        repository: OWNER/NAME.
        license: License of the model.
        checkpoint: Whose pipeline it is in place of that of the run's end.

    Raises:
        ValueError: the folder holds no pipeline and no complete checkpoint, or one without weights that are published.
    """
    if checkpoint is None and not (run / "model_index.json").exists():
        checkpoint = newest_complete(run / "checkpoints")
        if checkpoint is None:
            raise ValueError(f"{run} holds neither model_index.json nor a complete checkpoint, so there is no model")
    source = checkpoint or run
    network = network_in(source)
    _check_weights(network)
    files = public_files(source, *(PIPELINE if network != source else FLAT_PIPELINE)) | public_files(run, *OF_THE_RUN)
    results = {}
    if checkpoint is None:
        files |= public_files(run, *BESIDE_A_FINISHED_PIPELINE)
        results = read_json_if_there(run / "metrics.json")
    elif grids := sorted((run / "samples").glob("step-*.png")):
        files["samples/grid.png"] = grids[-1]
    config = _settings_of(run)
    data = config.get("data")
    if isinstance(data, dict) and Path(str(data.get("name", "/"))).exists():
        data["name"] = Path(data["name"]).name  # or a folder such as my/pictures would pass for an id
    subject = Subject(
        repository,
        license,
        unet=read_json_if_there(network / "config.json"),
        config=public(config),
        results=public(results),
        environment=public(read_json_if_there(run / "environment.json")),
        step=step_of(checkpoint) if checkpoint else results.get("steps"),
        has_grid="samples/grid.png" in files,
    )
    after = "" if subject.step is None else f" after {subject.step} steps"
    return Push(f"Model{after}", files, lambda present: model_card(subject, present))


def _check_weights(network: Path) -> None:
    """See that there is a network to push.

    Raises:
        ValueError: its config or its weights are missing.
    """
    if not (network / "config.json").is_file():
        raise ValueError(f"{network} has no config.json, so there is no network to push")
    if not any(network.glob("diffusion_pytorch_model*.safetensors")):
        pickled = next(network.glob("*.bin"), None)
        if pickled is not None:
            raise ValueError(
                f"{pickled} is pickled, which can hold code and is not published; make safetensors of it by "
                "ddpm-hf-convert"
            )
        raise ValueError(f"{network} has no weights (diffusion_pytorch_model.safetensors) to push")


def _settings_of(run: Path) -> dict[str, Any]:
    """What its config.yaml says; nothing where there is none.

    Raises:
        ValueError: it is no recipe.
    """
    path = run / "config.yaml"
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(path.read_bytes().decode())
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())}); restore it, or move it away"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no settings; restore it, or move it away")
    return config


def checkpoint_push(run: Path, checkpoint: Path) -> Push:
    """A checkpoint from which another machine can resume."""
    files = public_files(checkpoint, "**/*")
    state = files[STATE.as_posix()]
    assert isinstance(state, bytes)
    files[STATE.as_posix()] = json.dumps(resealed(json.loads(state), files), indent=2).encode() + b"\n"
    files = {f"{checkpoint.name}/{name}": content for name, content in files.items()}
    files |= public_files(run, "metrics.jsonl")
    return Push(f"Checkpoint of step {step_of(checkpoint)}", files, branch=CHECKPOINTS, mirror=True)


def download_checkpoint(resume: str) -> Path:
    """The checkpoint that ``hub:ID[@revision]`` names, in the cache of the Hub's files.

    The revision is a branch, tag or commit; without one it is the branch of checkpoints.

    Raises:
        ValueError: there is none, in one sentence.
    """
    name, _, revision = resume.removeprefix("hub:").partition("@")
    Repository(name)  # refuses what is no id
    if not sys.stderr.isatty():
        disable_progress_bars()
    checkpoint = None
    try:
        api = api_of(None)
        info = retried(lambda: api.model_info(name, revision=revision or CHECKPOINTS), name, AT_THE_START)
        folders = {sibling.rfilename.partition("/")[0] for sibling in info.siblings or []}
        steps = [Path(name) for name in folders if re.fullmatch(r"step-\d+", name)]
        if steps:
            files = [f"{max(steps, key=step_of)}/**", "metrics.jsonl"]
            fetch = partial(snapshot_download, name, revision=info.sha, allow_patterns=files)
            checkpoint = newest_complete(fetched(lambda: Path(fetch()), name))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ValueError(f"--resume {resume}: {explain(error, name)}") from error
    if checkpoint is None:
        raise ValueError(
            f"--resume {resume}: no complete checkpoint is there; a run with --hub_strategy checkpoints puts one there"
        )
    return checkpoint


class Publisher:
    """Pushes a run's states one after the other in a thread beside it. Failures are reported at the end, not raised.

    While one push is under way a newer one waits, and an even newer one takes its place: all hold everything.

    Args:
        run: The run's folder.
        repository: The repository to push to; already prepared.
        strategy: "end" pushes when all is done, "every_save" also the model of each checkpoint, "checkpoints" also the
            checkpoints themselves.
        license: License of the model.
    """

    def __init__(self, run: Path, repository: Repository, strategy: Strategy, license: str) -> None:
        self._run, self._repository, self._strategy, self._license = run, repository, strategy, license
        self._changed = threading.Condition()
        self._waiting: list[Push] = []
        self._staged: tempfile.TemporaryDirectory[str] | None = None
        self._is_closing = False
        self._problem: str | None = None  # of the last push
        self._unready: str | None = None  # what kept the newest state from becoming one
        self._thread = threading.Thread(target=self._work, name="pushing", daemon=True)
        self._thread.start()

    def saved(self, checkpoint: Path) -> None:
        """Push a checkpoint that is complete, if the strategy says so."""
        if self._strategy != "end":
            self._submit(lambda: self._pushes(checkpoint))

    def finished(self) -> None:
        """Push the run's folder, which is complete."""
        self._submit(lambda: self._pushes(None))

    def close(self, timeout: float | None = None) -> str | None:
        """Wait for the pushes under way.

        Args:
            timeout: Seconds; None for as long as it takes.

        Returns:
            Why the last push did not happen, and what to do; None if it did.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._problem = "it was not done in time"
        problem = self._unready or self._problem
        if problem is None:
            return None
        command = command_to_finish(self._run, self._repository.id, self._license, self._strategy == "checkpoints")
        return f"everything is saved, and not all of it pushed ({problem}); '{command}' finishes that"

    def _pushes(self, checkpoint: Path | None) -> list[Push]:
        pushes = [model_push(self._run, self._repository.id, self._license, checkpoint)]
        newest = checkpoint or newest_complete(self._run / "checkpoints")
        if self._strategy == "checkpoints" and newest is not None:
            pushes.append(checkpoint_push(self._run, newest))
        return pushes

    def _submit(self, make: Callable[[], list[Push]]) -> None:
        try:
            staged = tempfile.TemporaryDirectory(prefix=STAGED, dir=self._run, ignore_cleanup_errors=True)
            pushes = [_kept(push, Path(staged.name, str(i))) for i, push in enumerate(make())]
        except (OSError, ValueError) as error:
            self._unready = " ".join(str(error).split())
            return
        self._unready = None
        with self._changed:
            self._waiting, replaced, self._staged = pushes, self._staged, staged
            self._changed.notify_all()
        if replaced is not None:
            replaced.cleanup()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                pushes, self._waiting = self._waiting, []
                staged, self._staged = self._staged, None
            try:
                for push in pushes:
                    push.to(self._repository)
                self._problem = None
            except PushError as error:
                self._problem = str(error)
                print(f"Note: a push did not work: {error}.", file=sys.stderr)
            except Exception as error:  # a defect here must not end the thread without a word
                self._problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            finally:
                if staged is not None:
                    staged.cleanup()


def _kept(push: Push, folder: Path) -> Push:
    """The same push of links to its files, which stay when a checkpoint is removed."""
    files: Files = {}
    for name, content in push.files.items():
        if isinstance(content, Path):
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(content, link)
            except OSError:  # a file system without links
                shutil.copyfile(content, link)
            content = link
        files[name] = content
    return Push(push.message, files, push.card, push.branch, push.mirror)
