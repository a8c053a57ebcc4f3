"""Train a model: train_accelerate.py as a console command, for those who have the package and no checkout of it.

    ddpm-hf-train                                            the embedded digits, a few minutes
    ddpm-hf-train --config cifar10 --dry_run                 what the run of a recipe would cost
    ddpm-hf-train --launcher cpu_2_processes --seed 1        several processes, by a launcher file
    accelerate launch -m ddpm_hf.cli.train --seed 1          the same by accelerate's own command

Recipes and launcher files are given by their names or by paths of your own.
"""

import os
import sys

from ddpm_hf.command_line import fail
from ddpm_hf.recipes import LAUNCHERS, find_file, training_script
from ddpm_hf.signals import ended_by_signals


def main() -> None:
    """The console command."""
    with ended_by_signals():
        _start_processes(sys.argv[1:])
        training_script().main()


def _start_processes(argv: list[str]) -> None:
    """With --launcher, become accelerate's launcher, which starts this module in each process."""
    rest, words, launcher = list[str](), iter(argv), None
    for word in words:
        option, is_set, value = word.partition("=")
        if option != "--launcher":
            rest.append(word)
        elif not (launcher := value if is_set else next(words, "")):
            fail("--launcher needs a launcher file of accelerate, by its path or its name")
    if launcher is None:
        return
    if "LOCAL_RANK" in os.environ or "ACCELERATE_DYNAMO_MODE" in os.environ:
        fail("--launcher starts processes, and a launcher has started this one already; give one of the two")
    try:
        file = find_file(LAUNCHERS, launcher)
    except ValueError as error:
        fail(str(error))
    if not file.is_file():
        fail(f"the launcher file {file} does not exist; give the path of one, or its name without a folder")
    accelerate = ["-m", "accelerate.commands.launch", "--config_file", str(file), "-m", "ddpm_hf.cli.train", *rest]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *accelerate])


if __name__ == "__main__":
    main()
