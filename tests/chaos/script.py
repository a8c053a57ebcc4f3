"""train_accelerate.py with a strike at one of its instructions: the strike in JSON, then the script's arguments."""

import json
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.chaos.strikes import Strike, at_instruction  # noqa: E402

values = json.loads(sys.argv.pop(1))
at_instruction(Strike(**{**values, "number": signal.Signals(values["number"])}))
runpy.run_path(str(ROOT / "train_accelerate.py"), run_name="__main__")
