"""Run our commands in processes of their own, as a user does.

Every new Python spends seconds on imports. So `accelerate` and `minionerec` are for the tests that are about a real launch; all
others take `forked`: a server that has imported the libraries, but nothing of ours (forkserver.py), forks each process, and
only the work itself takes time. Ranks find the environment that a launcher would give them.
"""

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
ENVIRONMENT.pop("DS_ACCELERATOR", None)  # stages that ran in this process may have set it, and it hides warnings
_LIMIT = 900  # seconds; a busy machine is slow


def minionerec(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """The command line in a fresh process."""
    return _run([sys.executable, "-m", "minionerec", *arguments], check)


def accelerate(processes: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """`accelerate launch` on CPUs with gloo."""
    options = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--main_process_port", str(_free_port()), *arguments]
    return _run([sys.executable, "-m", "accelerate.commands.launch", *options], check)


def torchrun(processes: int, restarts: int, *arguments: str) -> subprocess.CompletedProcess:
    """torch's elastic launcher on this machine; it starts all processes again, so many times, once one has died.

    Its own store is not shared with them: they would find the addresses of those that have died there (docs/scale.md).
    """
    options = ["--nnodes", "1", "--nproc_per_node", str(processes), "--max_restarts", str(restarts)]
    options += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{_free_port()}"]
    command = ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", sys.executable, "-m", "torch.distributed.run"]
    return _run([*command, *options, *arguments], check=True)


def machines(count: int, *arguments: str) -> list[subprocess.CompletedProcess]:
    """`accelerate launch` on each of so many "machines", a process on each; all are this one, and meet at its loopback."""
    port, started = str(_free_port()), []
    for rank in range(count):
        options = ["--num_processes", str(count), "--num_machines", str(count), "--machine_rank", str(rank)]
        options += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--mixed_precision", "no", *arguments]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes))
    done = []
    for process in started:
        output, errors = process.communicate(timeout=_LIMIT)
        assert process.returncode == 0, output + errors
        done.append(subprocess.CompletedProcess(process.args, process.returncode, output, errors))
    return done


def forked(processes: int, *arguments: str, zero2: str | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """A script with its arguments, or `-m` and a module with its arguments, as so many ranks on CPUs with gloo.

    As torch's launcher does, it ends all ranks once one has failed, and returns that rank's exit code. Errors are in `stdout`.

    Args:
        zero2: a configuration file of accelerate; what its launcher would put into the environment is there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forkserver"])
    port = str(_free_port())
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        output.touch()
        ranks = []
        for rank in range(processes):
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            if processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            ranks.append(context.Process(target=_rank, args=(arguments, environment, zero2, str(output))))
        for process in ranks:
            process.start()
        code = _wait(ranks)
        result = subprocess.CompletedProcess(arguments, code, output.read_text(), "")
    assert not check or code == 0, result.stdout
    return result


def _rank(arguments: tuple[str, ...], environment: dict[str, str], zero2: str | None, output: str) -> None:
    """What a forked process does: it becomes the script as a fresh Python would run it."""
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    if zero2 is not None:
        os.environ.update(_zero2_environment(zero2))
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _zero2_environment(file: str) -> dict[str, str]:
    """What `accelerate launch` with this configuration adds to the environment."""
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    environment: dict[str, str] = {}
    launch.deepspeed_launcher = lambda options: environment.update(prepare_deepspeed_cmd_env(options)[1])
    options = ["--config_file", file, "--num_processes", os.environ["WORLD_SIZE"], "--mixed_precision", "no", "--num_machines"]
    launch.launch_command(
        launch.launch_command_parser().parse_args([*options, "1", "--main_process_port", str(_free_port()), "script.py"])
    )
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "DEEPSPEED_"))}


def _wait(ranks: list[BaseProcess]) -> int:
    """Wait for all; the first exit code that is not 0."""
    end = time.monotonic() + _LIMIT
    while any(process.exitcode is None for process in ranks) and not any(process.exitcode for process in ranks):
        multiprocessing.connection.wait([process.sentinel for process in ranks if process.exitcode is None], _LIMIT)
        assert time.monotonic() < end, f"no end after {_LIMIT} s"
    code = next((process.exitcode for process in ranks if process.exitcode), 0)
    for process in ranks:
        process.kill()
        process.join()
    return code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(command: list[str], check: bool) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=_LIMIT, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
