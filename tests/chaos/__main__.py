"""python -m tests.chaos --minutes N [--seed S] [--launcher NAME ...]: strikes for so long, and a table of them."""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.launched import LAUNCHERS
from tests.chaos.stories import Account, Unbroken, story


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", nargs="*", choices=list(LAUNCHERS), default=list(LAUNCHERS))
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    chance, account, end = random.Random(asked.seed), Account(), time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as home:
        os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        unbroken = Unbroken(Path(place))
        while time.monotonic() < end:
            launcher = asked.launcher[account.stories % len(asked.launcher)]
            faults = len(account.faults)
            story(chance, launcher, Path(place) / f"run{account.stories}", unbroken, account)
            for fault in account.faults[faults:]:
                print("FAULT", fault, flush=True)
    print(account.table())
    return 1 if account.faults else 0


if __name__ == "__main__":
    sys.exit(main())
