"""Steps of RL do not depend on how they are launched, and are stock TRL's."""

import pytest
import torch

from tests.launch import forked
from tests.rl.steps import CASES, STOCK, steps


@pytest.fixture(scope="module")
def alone(policy, tmp_path_factory):
    return {case: steps(policy, tmp_path_factory.mktemp("alone"), case) for case in CASES}


def assert_same(found, wanted):
    assert len(found["log"]) == len(wanted["log"]) == 2
    for now, then in zip(found["log"], wanted["log"], strict=True):
        assert now["grad_norm"] == pytest.approx(then["grad_norm"], rel=1e-4) and now["grad_norm"] > 1e-3
        for name in ("reward", "kl", "entropy"):  # a step of an earlier rollout has no reward
            if then[name] is not None:
                assert now[name] == pytest.approx(then[name], rel=1e-3, abs=1e-6)
    assert (found["moved"] - wanted["moved"]).norm() <= 1e-4 * wanted["moved"].norm()


@pytest.mark.parametrize("case", STOCK)
def test_one_process_takes_the_steps_of_stock_trl(policy, alone, tmp_path, case):
    assert_same(alone[case], steps(policy, tmp_path, case, stock=True))


@pytest.mark.parametrize(
    ("launch", "cases"),
    [
        pytest.param("MULTI_CPU", list(CASES), marks=pytest.mark.slow),
        pytest.param("DEEPSPEED", list(CASES), marks=pytest.mark.slow),
        # Without a reference model, two losses differ from the third in nothing that processes share.
        ("DEEPSPEED", [case for case in CASES if case not in ("grpo, beta 0.0", "gspo, beta 0.0")]),
    ],
    ids=["MULTI_CPU", "DEEPSPEED, all", "DEEPSPEED"],
)
def test_two_processes_take_the_steps_of_one(policy, alone, tmp_path, launch, cases):
    script = ("-m", "tests.rl.steps", str(policy), str(tmp_path), *cases)
    forked(2, *script, zero2="rl/zero2.yaml" if launch == "DEEPSPEED" else None)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert list(results) == cases
    for case in cases:
        assert results[case]["kind"] == f"{launch} 2"
        assert_same(results[case], alone[case])
