"""Two SGD steps with several losses, by as many processes as it is launched with: python -m tests.rl.steps POLICY OUT CASE...

SGD, unlike AdamW, does not divide rounding noise by its own size, so that parameters can be compared across launches.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.training_args import OptimizerNames
from trl import GRPOConfig, GRPOTrainer

from minionerec.pipeline import set_up
from tests.rl.toy import trainer_of

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{loss}, beta {beta}": {"loss": loss, "beta": beta, "rewards": {"prefix": 1.0}}
        for loss in ("grpo", "dapo", "gspo")
        for beta in (0.0, 0.05)
    },
    "filter, bnpo": {"loss": "bnpo", "dynamic_sampling": "filter", "rollouts": "stochastic", "sft_weight": 0.2},
    "sibling": {"advantages": "sibling", "rewards": {"prefix": 1.0}, "beta": 0.05},
    "listwise": {"objective": "listwise", "add_target": True, "rollouts": "stochastic"},
    "sdpo": {"objective": "sdpo", "add_target": True, "rollouts": "uniform", "rewards": {"rule": 1.0}},
    "importance": {
        "importance_weights": True,
        "rollouts": "stochastic",
        "normalise_over": "catalog",
        "loss": "dr_grpo",
        "rewards": {"prefix": 1.0},
    },
    "two updates": {"updates_per_rollout": 2, "clip": 0.01, "beta": 0.05, "rewards": {"prefix": 1.0}},
    "brake and entropy": {"kl_brake": 1e-4, "entropy_bonus": 0.1, "beta": 0.05, "rewards": {"prefix": 1.0}},
    "exact": {"objective": "exact", "normalise_over": "catalog", "rewards": {"rule": 1.0, "prefix": 0.5}, "beta": 0.05},
}
STOCK = [name for name, fields in CASES.items() if fields.get("loss") in ("grpo", "dapo", "gspo")]
_BATCH = {"prompts_per_step": 12, "micro_batch_prompts": 3}  # alone four micro-batches a step, two on each of two processes


def _plain(arguments: GRPOConfig) -> GRPOConfig:
    """Two steps of SGD at a constant rate, with nothing clipped."""
    arguments.optim, arguments.lr_scheduler_type = OptimizerNames.SGD, "constant"
    arguments.learning_rate, arguments.warmup_steps, arguments.max_grad_norm = 0.05, 0, 1e9
    arguments.max_steps, arguments.logging_steps, arguments.save_strategy = 2, 1, "no"
    return arguments


def steps(policy: Path, out: Path, case: str, stock: bool = False) -> dict[str, Any]:
    """Gradient norm and loss figures of each step, how far the parameters moved, and who took part.

    Args:
        stock: TRL's own trainer with our rollouts.
    """
    trainer = trainer_of(policy, out, kind=GRPOTrainer if stock else None, adjust=_plain, **{**CASES[case], **_BATCH})
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():  # off the reference model, so that there is a KL
        for parameter in trainer.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=chance)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    names = ("grad_norm", "reward", "kl", "entropy")
    return {
        "kind": f"{trainer.accelerator.distributed_type.name} {trainer.accelerator.num_processes}",
        "log": [{name: row.get(name) for name in names} for row in trainer.state.log_history if "grad_norm" in row],
        "moved": torch.cat([(after[name].detach().float() - old).flatten() for name, old in before.items()]),
    }


if __name__ == "__main__":
    set_up(1)
    results = {case: steps(Path(sys.argv[1]), Path(sys.argv[2]), case) for case in sys.argv[3:]}
    if os.environ.get("RANK", "0") == "0":
        torch.save(results, Path(sys.argv[2]) / "results.pt")
