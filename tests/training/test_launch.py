import os

import pytest

from minionerec.errors import ConfigError
from minionerec.training import launch
from minionerec.training.launch import (
    check_distribution,
    check_precision,
    micro_batch_within,
    requested_processes,
    split_batch,
)


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


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("accelerate launch --num_processes 3 sft/train.py --config a --seed 2", 3),
        ("python -m accelerate.commands.launch --num-processes=2 x.py", 2),
        ("accelerate launch x.py --config a", 1),
        ("bash", 1),
    ],
)
def test_requested_processes(command, expected):
    assert requested_processes(command.split()) == expected


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
