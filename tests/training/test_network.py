from dataclasses import replace

import pytest

from minionerec.training.network import exchanged, rows, seconds
from minionerec.training.plan import Devices, Plan
from tests.training.test_plan import NOTHING, shape

SIZE = 1_000_000


def plan(devices, accumulation=1):
    sizes = shape(SIZE, weight_bytes=4 * SIZE, trainable_bytes=4 * SIZE)
    return Plan("sft", sizes, replace(NOTHING, accumulation=accumulation), devices, 0)


def test_ddp_sums_the_gradients_once_in_a_step():
    """Two processes send all their gradients; many send nearly twice as many bytes, as in a ring."""
    assert exchanged(plan(Devices(2), accumulation=3)) == {"gradients": 4 * SIZE}
    assert exchanged(plan(Devices(8))) == {"gradients": 2 * 4 * SIZE * 7 // 8}
    assert exchanged(plan(Devices(1))) == {"gradients": 0}


def test_zero2_sums_gradients_in_every_micro_batch_and_gathers_weights_once():
    assert exchanged(plan(Devices(4, zero2=True), accumulation=3)) == {"gradients": 18 * SIZE, "weights": 3 * SIZE}
    half = exchanged(plan(Devices(4, zero2=True, bf16=True)))
    assert half == {"gradients": 3 * SIZE, "weights": 3 * SIZE // 2}


def test_seconds_and_rows():
    ddp = plan(Devices(8))
    assert seconds(ddp, gbit=0.056) == pytest.approx(1.0)
    assert rows(ddp, 2, None) == [("each machine sends per step: gradients", "7.00 MB (2 machines x 4 devices)")]
    assert rows(ddp, 2, 56.0)[-1] == ("link of 56 Gbit/s is busy per step (estimate)", "0.001 s")
