import os
import subprocess
import sys
from pathlib import Path

LOOK = Path(__file__).parents[2] / "scripts" / "look.py"


def test_without_a_browser_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, LOOK, tmp_path, "--out", tmp_path / "shots"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "no browser" in done.stderr and "Chromium" in done.stderr
