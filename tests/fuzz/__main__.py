"""The command: all targets in turn until the time is over, and a table of what came of it."""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """The console command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Feed the product with bad input.")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; null takes the clock")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        # Read at import by huggingface_hub and datasets.
        os.environ |= {"HF_HOME": f"{folder}/huggingface", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        logging.disable(logging.WARNING)  # what libraries say of each input

        from tests.fuzz.rounds import run_for, table
        from tests.fuzz.targets import TARGETS

        unknown = set(asked.only or ()) - TARGETS.keys()
        if unknown:
            parser.error(f"no target is called {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
        chosen = {name: target for name, target in TARGETS.items() if not asked.only or name in asked.only}
        seed = time.time_ns() // 10**9 if asked.seed is None else asked.seed
        found = run_for(asked.minutes * 60, chosen, Path(folder), seed)
    print(table(found))
    sys.exit(any(counts.faults for counts in found.values()))


if __name__ == "__main__":
    main()
