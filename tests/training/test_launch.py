import os
import shlex
import sys
from types import SimpleNamespace

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from minionerec.errors import ConfigError
from minionerec.training import launch
from minionerec.training.launch import (
    RequestedLaunch,
    check_distribution,
    check_precision,
    micro_batch_within,
    split_batch,
)
from tests.launch import ROOT


@pytest.mark.parametrize(("total", "micro", "expected"), [(16, 16, (16, 1)), (16, 4, (4, 4)), (8, 32, (8, 1))])
def test_split(total, micro, expected):
    assert split_batch("a", total, "b", micro) == expected


def test_uneven_split():
    with pytest.raises(ConfigError, match=r"a 10 does not split into 1 device\(s\) times micro-batches of b 4"):
        split_batch("a", 10, "b", 4)


@pytest.mark.parametrize(("launched", "bf16"), [("bf16", True), ("no", False), (None, True), (None, False)])
def test_agreeing_precision(monkeypatch, launched, bf16):
    monkeypatch.setattr(launch, "_LAUNCHED_PRECISION", launched)
    check_precision("sft.bf16", bf16)


@pytest.mark.parametrize(("launched", "bf16", "advice"), [("bf16", False, "true"), ("no", True, "false")])
def test_contradicting_precision(monkeypatch, launched, bf16, advice):
    monkeypatch.setattr(launch, "_LAUNCHED_PRECISION", launched)
    with pytest.raises(ConfigError, match=f"--sft.bf16 {advice}"):
        check_precision("sft.bf16", bf16)


@pytest.fixture
def no_default_file(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none.yaml"))


@pytest.mark.usefixtures("no_default_file")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("accelerate launch --num_processes 3 sft/train.py --config a --seed 2", RequestedLaunch(3)),
        ("python -m accelerate.commands.launch --num-processes=2 x.py", RequestedLaunch(2)),
        ("accelerate launch x.py --config a", RequestedLaunch()),
        ("bash", RequestedLaunch()),
        (
            "accelerate launch --num_machines 2 --num_processes 6 --machine_rank 1 --main_process_ip a --main_process_port 9",
            RequestedLaunch(6, 2, 1, "a", 9),
        ),
    ],
)
def test_requested_launch(command, expected):
    assert RequestedLaunch.read(command.split()) == expected


def test_what_the_options_leave_open_stands_in_the_configuration_file(tmp_path, monkeypatch):
    file = tmp_path / "two.yaml"
    file.write_text(
        "distributed_type: MULTI_CPU\nnum_processes: 4\nnum_machines: 2\nmain_process_ip: a\nmain_process_port: 9\n"
    )
    words = ["accelerate", "launch", "--machine_rank", "1"]
    expected = RequestedLaunch(4, 2, 1, "a", 9)
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none.yaml"))
    assert RequestedLaunch.read(words) == RequestedLaunch(1, 1, 1)
    assert RequestedLaunch.read([*words, "--config_file", str(file), "x.py"]) == expected
    monkeypatch.setattr(launch, "default_config_file", str(file))  # accelerate takes it if none is named
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    assert RequestedLaunch.read(words) == expected
    assert RequestedLaunch.read([*words, "--num_processes", "2"]).processes == 2


def test_each_machine_starts_its_share():
    """Without the machine's options both would start a world of their own, and write one folder."""
    assert RequestedLaunch(3).torch_launcher() == ["--standalone", "--nproc_per_node", "3"]
    shares = [RequestedLaunch(6, 2, rank, "a", 9).torch_launcher() for rank in (0, 1)]
    for rank, options in enumerate(shares):
        parsed = get_args_parser().parse_args([*options, "x.py"])
        assert (parsed.nnodes, parsed.node_rank, parsed.nproc_per_node) == ("2", rank, "3")
        assert (parsed.master_addr, parsed.master_port, parsed.standalone) == ("a", 9, False)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        (RequestedLaunch(3, 2, 0, "a", 9), "--num_processes 3 .* does not split over --num_machines 2"),
        (RequestedLaunch(1, 2, 0, "a", 9), "Pass a multiple of 2"),
        (RequestedLaunch(4, 2, 2, "a", 9), "--machine_rank 2 is not one of 0 to 1"),
        (RequestedLaunch(4, 2, 0, None, 9), "--main_process_ip"),
    ],
)
def test_contradicting_machines(requested, message):
    with pytest.raises(ConfigError, match=message):
        requested.torch_launcher()


def test_torchs_launcher_takes_the_place_of_accelerates_only_process(monkeypatch):
    started = []
    command = "accelerate launch --num_machines 2 --num_processes 2 --machine_rank 1 --main_process_ip a --main_process_port 9"
    monkeypatch.setattr(launch, "_LAUNCHED_PRECISION", "no")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=command.split)))
    monkeypatch.setattr("os.execv", lambda program, words: started.append(words))
    for spec, program in ((None, ["sft/train.py"]), (SimpleNamespace(name="minionerec.__main__"), ["-m", "minionerec"])):
        monkeypatch.setattr(sys, "argv", ["sft/train.py", "--seed", "2"])
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
        launch.start_all_processes()
        assert started[-1][1:] == [
            *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", "1", "--nproc_per_node", "1"),
            *("--master_addr", "a", "--master_port", "9", *program, "--seed", "2"),
        ]


def launches_of_the_page():
    """Command lines of docs/scale.md that start a launcher, as words."""
    for line in (ROOT / "docs/scale.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(("accelerate launch ", "torchrun ")):
            yield shlex.split(line)
        elif line.startswith("srun bash -c "):
            yield shlex.split(shlex.split(line)[3])


def test_the_launchers_take_the_commands_of_the_page():
    accelerate, torchs = launch_command_parser(), get_args_parser()
    started = []
    for launcher, *words in launches_of_the_page():
        words = [word.replace("$SLURM_NODEID", "1") if word != "R" else "1" for word in words]
        parsed = accelerate.parse_args(words[1:]) if launcher == "accelerate" else torchs.parse_args(words)
        assert not parsed.training_script.startswith("-"), words
        assert parsed.module or (ROOT / parsed.training_script).is_file()
        started.append((launcher, parsed.training_script))
        if launcher == "accelerate" and parsed.config_file is not None:
            requested = RequestedLaunch.read(["accelerate", *words[:-1], *("--config_file", str(ROOT / parsed.config_file))])
            assert (requested.processes, requested.machines, requested.machine_rank) == (8, 2, 1)
            assert None not in (requested.address, requested.port)
    assert {("accelerate", "sft/train.py"), ("torchrun", "sft/train.py"), ("accelerate", "minionerec")} <= set(started)


def test_a_launch_that_became_less_is_refused(monkeypatch):
    """What accelerate does silently: ZeRO-2 turned into DDP by ACCELERATE_USE_CPU, one process instead of two."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert check_distribution("MULTI_CPU", 2) == "2 processes on CPUs (DDP)"
    with pytest.raises(ConfigError, match="started 2 processes, but 1 train together"):
        check_distribution("NO", 1)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert check_distribution("DEEPSPEED", 2, 2) == "2 processes on DeepSpeed ZeRO-2"
    for stage in (1, 3):
        with pytest.raises(ConfigError, match=rf"stage {stage} of DeepSpeed's ZeRO, .* Set zero_stage: 2"):
            check_distribution("DEEPSPEED", 2, stage)
    with pytest.raises(ConfigError, match=r"asks for DeepSpeed, but what runs is MULTI_CPU. Unset ACCELERATE_USE_CPU"):
        check_distribution("MULTI_CPU", 2)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert check_distribution("NO", 1) == "1 process on the CPU, not distributed"


def test_a_launcher_that_cannot_start_its_processes_again_is_warned_of(monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for store, restarts, warned in (("True", "0", False), ("False", "3", False), ("True", "3", True)):
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", store)
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        caplog.clear()
        assert check_distribution("MULTI_CPU", 2) == "2 processes on CPUs (DDP)"
        assert (
            "3 time(s) if one dies, but they would not find each other. Launch with TORCH_DISABLE_SHARE" in caplog.text
        ) == warned
    monkeypatch.setenv("RANK", "1")
    caplog.clear()
    check_distribution("MULTI_CPU", 2)
    assert not caplog.text


def test_micro_batches_within_a_budget():
    assert micro_batch_within("a", 100, 10, 12, 128) == 6  # ten trees would fit, but twelve do not split into tens
    assert micro_batch_within("a", 100, 10, 12, 3) == 3
    assert micro_batch_within("a", 10, 10, 7, 128) == 1
    with pytest.raises(ConfigError, match="a is 9, but the longest training example has 10 tokens"):
        micro_batch_within("a", 9, 10, 12, 128)


def test_each_stage_of_a_process_has_a_tensorboard_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr(launch, "_CHOSEN_TENSORBOARD", None)
    for stage in ("sft", "rl"):
        launch.keep_tensorboard(tmp_path / stage, ["tensorboard"])
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / stage)
    launch.keep_tensorboard(tmp_path / "other", ["wandb"])
    monkeypatch.setattr(launch, "_CHOSEN_TENSORBOARD", str(tmp_path / "rl"))
    launch.keep_tensorboard(tmp_path / "other", ["tensorboard"])
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "rl")
