"""The passes of a step share one packed batch, and nothing else changes."""

import pytest
import torch

from minionerec.rl import trainer as trainer_module
from minionerec.rl.packing import PackedRows
from minionerec.tree import pack
from tests.rl.toy import trainer_of


@pytest.mark.parametrize(
    ("fields", "packed", "unshared"),
    [
        ({"beta": 0.05}, 4, 8),  # a micro-batch is one rollout: the reference model's pass and the policy's
        ({"updates_per_rollout": 2, "beta": 0.0, "normalise_over": "catalog"}, 4, 6),  # the old policy's are not shuffled yet
        ({"beta": 0.05, "sft_weight": 0.5, "rollouts": "sampling"}, 8, 8),  # the policy's pass has further branches
    ],
)
def test_a_step_packs_its_rows_once(policy, tmp_path, monkeypatch, fields, packed, unshared):
    calls, results = [], []
    monkeypatch.setattr(trainer_module, "pack", lambda *given, **named: calls.append(1) or pack(*given, **named))
    for share in (True, False):
        if not share:
            monkeypatch.setattr(PackedRows, "batch", lambda self, *given: self._pack(self.branches(*given)))
        calls.clear()
        trainer = trainer_of(policy, tmp_path / str(share), rewards={"prefix": 1.0}, **fields)
        trainer.args.max_steps, trainer.args.logging_steps = 2, 1
        trainer.train()
        assert len(calls) == (packed if share else unshared)
        log = [{name: row.get(name) for name in ("loss", "kl", "entropy", "grad_norm")} for row in trainer.state.log_history]
        results.append((log, torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
