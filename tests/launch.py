"""Run our commands in processes of their own, as a user does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def minionerec(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """The command line in a fresh process."""
    return _run([sys.executable, "-m", "minionerec", *arguments], check)


def accelerate(processes: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """`accelerate launch` on CPUs with gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    return _run([*command, "--num_machines", "1", "--mixed_precision", "no", "--main_process_port", port, *arguments], check)


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """torch's own launcher on CPUs with gloo: plain DDP."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return _run([*command, *arguments], check=True)


def _run(command: list[str], check: bool) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
