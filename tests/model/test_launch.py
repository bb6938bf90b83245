import pytest

from minionerec.errors import ConfigError
from minionerec.model import launch
from minionerec.model.launch import check_precision, requested_processes, split_batch


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
