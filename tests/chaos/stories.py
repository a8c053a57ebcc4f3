"""A story: a run is struck some times, started again until it is done, and then compared with an unbroken one."""

import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ddpm_hf.files import is_temporary
from tests.chaos.launched import LAUNCHERS, Standstill, of_run, struck_run
from tests.chaos.strikes import random_strike
from tests.runs import measured, tensors_of

STEPS = 24
# Dropout, flips, several averages, rounds of scores with the best weights kept, and grids.
WORK: list[object] = [
    *("--training.steps", STEPS, "--training.checkpoint_every", 5, "--model.dropout", "0.1"),
    *("--data.random_flip", "true", "--training.ema_decay", "[0.99,0.5]", "--training.sample_every", 8),
    *("--evaluation.every", 6, "--training.checkpoints_total_limit", 2),
]
MOST_STRIKES = 4
OWN_FRAME = 'train_accelerate.py", line'


@dataclass
class Account:
    """What has happened so far."""

    strikes: Counter[str] = field(default_factory=Counter)
    launchers: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    stories: int = 0
    faults: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The counts, a line each."""
        rows = [f"{self.stories} stories, {sum(self.strikes.values())} strikes, {len(self.faults)} faults"]
        for title, counts in (("strikes", self.strikes), ("launchers", self.launchers), ("ends", self.statuses)):
            rows += [f"  {title:<10} {name:<28} {count:>5}" for name, count in sorted(counts.items())]
        return "\n".join([*rows, *(f"FAULT {fault}" for fault in self.faults)])


class Unbroken:
    """The run to compare with, for each number of processes, and how long each launcher takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seconds: dict[str, float] = {}

    def of(self, launcher: str) -> tuple[Path, float]:
        """Its folder and the seconds that it took."""
        processes = LAUNCHERS[launcher][1]
        run = self._folder / f"{launcher}-{processes}".replace(" ", "_").replace(",", "")
        if launcher not in self._seconds:
            start = time.monotonic()
            statuses = struck_run(launcher, WORK, run, None, 0.0)
            assert not any(statuses), run.with_name(f"{run.name}.said").read_text()
            self._seconds[launcher] = time.monotonic() - start
        return run, self._seconds[launcher]


def story(chance: random.Random, launcher: str, folder: Path, unbroken: Unbroken, account: Account) -> None:
    """Tell one story, and count it."""
    whole, usual = unbroken.of(launcher)
    account.stories += 1
    account.launchers[launcher] += 1
    told = [f"{launcher}:"]
    said = folder.with_name(f"{folder.name}.said")
    before = len(account.faults)
    try:
        for _ in range(chance.randint(1, MOST_STRIKES)):
            strike = random_strike(chance)
            told.append(str(strike))
            account.strikes[strike.name] += 1
            statuses = struck_run(launcher, WORK, folder, strike, usual)
            account.statuses.update(f"{strike.number.name} -> {status}" for status in statuses)
            if OWN_FRAME in said.read_text():
                account.faults.append(f"traceback: {' '.join(told)}: {said.read_text()[-2000:]}")
        statuses = struck_run(launcher, WORK, folder, None, usual)
        if any(statuses):
            account.faults.append(f"does not go on ({statuses}): {' '.join(told)}: {said.read_text()[-2000:]}")
        else:
            account.faults += [f"{problem}: {' '.join(told)}" for problem in differences(folder, whole)]
    except Standstill:
        account.faults.append(f"standstill: {' '.join(told)}: processes {of_run(folder)}: {said.read_text()[-2000:]}")
    if len(account.faults) == before:
        shutil.rmtree(folder)


def differences(run: Path, whole: Path) -> list[str]:
    """What a finished run has otherwise than an unbroken one, and what it should not have at all."""
    found = []
    mine, theirs = tensors_of(run, STEPS), tensors_of(whole, STEPS)
    names = [name for name in theirs if name not in mine or not torch.equal(mine[name], theirs[name])]
    if names or mine.keys() != theirs.keys():
        found.append(f"other tensors {names[:3]}")
    one, other = measured(run), measured(whole)
    if one != other:
        odd = [line for line in (*one, *other) if (line in one) != (line in other)]
        found.append(f"another log of {len(one)} lines for {len(other)}: {odd[:4]}")
    files, here = _files_of(whole), _files_of(run)
    if files != here:
        found.append(f"other files {sorted(map(str, files ^ here))[:5]}")
    found += [f"left {path}" for path in run.rglob("*") if is_temporary(path.relative_to(run)) or path.name == ".lock"]
    for path in sorted(files & here):
        if path.suffix in (".safetensors", ".png") and (run / path).read_bytes() != (whole / path).read_bytes():
            found.append(f"another {path}")
    return found


def _files_of(run: Path) -> set[Path]:
    """Its files, without those of other checkpoints than the last: a save at a stop takes the place of an older one."""
    last = run / "checkpoints" / f"step-{STEPS}"
    files = {path for path in run.rglob("*") if path.is_file()}
    return {path.relative_to(run) for path in files if "checkpoints" not in path.relative_to(run).parts[:1]} | {
        path.relative_to(run) for path in files if last in path.parents
    }
