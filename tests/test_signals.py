"""A signal to any process of a run, or the end of its launcher: the step is saved, and no process is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import ddpm_hf.launch
import ddpm_hf.training.run
from ddpm_hf.command_line import ending_in_one_sentence
from tests.chaos.launched import LAUNCHERS, of_run
from tests.runs import TINY, Started, log_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_torch_is_loaded_a_signal_ends_the_script_in_one_sentence(
    tmp_path: Path, number: signal.Signals
) -> None:
    # The first thing that the script does once it listens is to import the command line.
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text(
        "import os, runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'ddpm_hf.command_line': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_path(sys.argv[0].replace('wrapper.py', 'train_accelerate.py'), run_name='__main__')\n"
    )
    (tmp_path / "train_accelerate.py").symlink_to(ROOT / "train_accelerate.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(wrapper)], capture_output=True, text=True, env=environment)
    assert done.returncode == 75
    name = number.name
    assert done.stderr == f"train_accelerate.py: stopped by {name}; the same command goes on from what is saved\n"


def interrupt_the_last_drawing() -> None:
    def score(self: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    ddpm_hf.training.run.Run.score = score  # type: ignore[assignment, method-assign]


def test_while_the_last_images_are_drawn_a_signal_ends_in_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    run = Started(["--training.steps", 3], tmp_path / "run", fault=interrupt_the_last_drawing)
    assert run.wait() == [75]
    assert run.said() == "train_accelerate: stopped by SIGINT; the same command goes on from what is saved\n"
    assert (tmp_path / "run" / "checkpoints" / "step-3").is_dir()


def storm_in_a_save() -> None:
    """Five signals of each kind before each name is given."""
    rename = os.rename

    def in_a_storm(*arguments: object, **options: object) -> None:
        if "step-4" in str(arguments[0]):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 5:
                os.kill(os.getpid(), number)
        rename(*arguments, **options)  # type: ignore[arg-type]

    os.rename = in_a_storm  # type: ignore[assignment]


def test_signals_within_a_save_do_not_break_it(tmp_path: Path) -> None:
    arguments = ["--training.steps", 9, "--training.checkpoint_every", 4]
    run = Started(arguments, tmp_path / "run", fault=storm_in_a_save)
    assert run.wait() == [75]
    # That save was due anyway; the signals are seen after the next step.
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-4", "step-5"}
    assert "Traceback" not in run.said()
    assert run.said().count("stopped by a signal; step 5 of 9 is saved") == 1


def signal_late_at_step_3() -> None:
    """As beside a device, where processes agree a step later that they stop; the signal comes to one of them."""
    begin, count = ddpm_hf.launch.StopSignal.__init__, ddpm_hf.training.run.Run.count

    def begin_late(self: Any, accelerator: Any) -> None:
        begin(self, accelerator)
        self._would_wait = True

    def count_and_signal(self: Any, *arguments: Any) -> None:
        count(self, *arguments)
        if self.state.step == 3 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    ddpm_hf.launch.StopSignal.__init__ = begin_late  # type: ignore[method-assign]
    ddpm_hf.training.run.Run.count = count_and_signal  # type: ignore[method-assign]


@pytest.mark.parametrize(("steps", "last"), [(9, 4), (3, 3)])
def test_processes_that_agree_a_step_later_stop_together_and_save(tmp_path: Path, steps: int, last: int) -> None:
    run = Started(["--training.steps", steps], tmp_path / "run", processes=2, fault=signal_late_at_step_3)
    assert run.wait() == [75, 75]
    assert f"stopped by a signal; step {last} of {steps} is saved" in run.said()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{last}"]


def start(launcher: str, run: Path, *around: str) -> subprocess.Popen[bytes]:
    words = LAUNCHERS[launcher][0]
    script = ["train_accelerate.py", *TINY, "--training.steps", "100000", "--output_dir", str(run)]
    said = run.with_name("said").open("w")
    return subprocess.Popen([*around, sys.executable, *words, *script], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["launcher", "all"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if "server" not in name])
def test_a_signal_to_a_launcher_saves_and_leaves_no_process(
    tmp_path: Path, launcher: str, number: signal.Signals, to_all: bool
) -> None:
    if number == signal.SIGKILL and (to_all or launcher == "python"):
        pytest.skip("nobody is left who could save")
    run = tmp_path / "run"
    process = start(launcher, run)
    while len(log_of(run)) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    for _ in range(5 if to_all else 1):
        for pid in [process.pid, *of_run(run)] if to_all else [process.pid]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    status, since = process.wait(60), time.monotonic()
    while of_run(run):
        assert time.monotonic() - since < 20
        time.sleep(0.1)
    said = run.with_name("said").read_text()
    assert said.count("is saved, and the same command goes on from there") == 1, said
    assert 'train_accelerate.py", line' not in said
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    assert not list((run / "checkpoints").glob(".*"))
    assert status == 75 if launcher == "python" else status != 0


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("unshare")
    else True,
    reason="no containers here",
)
@pytest.mark.parametrize("launcher", ["python", "torchrun", "accelerate, 2"])
def test_the_first_process_of_a_container_saves_too(tmp_path: Path, launcher: str) -> None:
    run = tmp_path / "run"
    process = start(launcher, run, "unshare", "--pid", "--fork", "--kill-child")
    while len(log_of(run)) < 2:
        assert process.poll() is None, run.with_name("said").read_text()
        time.sleep(0.05)
    os.kill(psutil.Process(process.pid).children()[0].pid, signal.SIGTERM)
    assert process.wait(60) == (75 if launcher == "python" else 1)
    said = run.with_name("said").read_text()
    assert said.count("is saved, and the same command goes on from there") == 1, said


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end, ending_in_one_sentence():
        raise error
    return end.value.code, capsys.readouterr().err.partition(": error: ")[2]


def test_the_user_and_the_machine_end_a_command_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ValueError("a setting"), capsys) == (2, "a setting\n")
    status, said = ended(KeyboardInterrupt(), capsys)
    assert (status, said) == (130, "interrupted; what was finished stays, and the same command makes the rest\n")
    status, said = ended(MemoryError(), capsys)
    assert (status, said[:40]) == (1, "out of memory; lower the batch size or t")
    with pytest.raises(RuntimeError, match="allocate") as caught:
        torch.empty(2**60)
    status, said = ended(caught.value, capsys)
    assert (status, said[:52]) == (1, "out of memory (4611686018427387904 bytes asked at on")
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    assert ended(gone, capsys)[1].startswith("another process of this run has ended")
    with pytest.raises(RuntimeError, match="a defect"), ending_in_one_sentence():
        raise RuntimeError("a defect")
