"""Nothing that only Unix has is needed. (Nobody has run the package on Windows; other libraries may fail there.)"""

import os
import subprocess
import sys
from pathlib import Path

from tests.scripts import no_unix

ROOT = Path(__file__).parents[1]


def test_the_commands_do_without_what_only_unix_has(tmp_path: Path) -> None:
    """In a process of its own, as it counts what modules find while they are imported."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "tests.scripts.no_unix", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "scores" / "metrics.json").exists()


def test_what_is_taken_away_is_there_on_unix_and_missed_by_code_that_asks(tmp_path: Path) -> None:
    """Else the test above would hold of anything."""
    code = (
        "from tests.scripts.no_unix import NAMES, take_away\n"
        "take_away()\n"
        "asked = ['import os; os.statvfs', 'import signal; signal.SIGHUP', 'import fcntl']\n"
        "asked.append('import os; os.open(\"/\", 0)')\n"
        "for line in asked:\n"
        "    for name, missed in (('ddpm_hf.files', True), ('torch', False)):\n"
        "        try:\n"
        "            exec(line, {'__name__': name})\n"
        "        except (AttributeError, ImportError, PermissionError):\n"
        "            assert missed, line\n"
        "        else:\n"
        "            assert not missed, line\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    for module, names in no_unix.NAMES.items():
        assert len({name for name in names if hasattr(module, name)}) > len(names) / 2
