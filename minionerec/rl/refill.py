"""Dynamic sampling: prompts whose group teaches nothing are replaced by others whose group does.

DAPO (Yu et al., 2025, section 3.2). Which prompts take part in a step depends on the seed, the step and the policy, not on the
number of devices or the size of micro-batches: every device rolls out its share of the candidates, all see the same result.
"""

from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object

from minionerec.rl.monitor import with_signal
from minionerec.rl.rollouts import Group, Rollouts
from minionerec.rl.trainer import TreeGRPOTrainer

Rows = list[dict[str, Any]]


def candidates(prompts: int, taken: list[int], seed: int, step: int) -> list[int]:
    """The numbers of all prompts but those taken, in the random order in which they are tried at a step."""
    order = np.random.default_rng([seed, step]).permutation(prompts)
    return order[~np.isin(order, taken)].tolist()


def _signals(trainer: TreeGRPOTrainer, rows: Rows, groups: list[Group]) -> list[bool]:
    """Which groups have rewards that are not all equal."""
    size = cast(int, trainer.args.num_generations)
    columns = {name: [row[name] for row in rows for _ in range(size)] for name in ("target", "row")}
    completions = [sid for group in groups for sid in group]
    functions = zip(cast(list, trainer.reward_funcs), trainer.reward_weights.tolist(), strict=True)
    found = [weight * torch.tensor(function(completion_ids=completions, **columns)) for function, weight in functions]
    return with_signal(torch.stack(found).sum(0), size)[::size].tolist()


def refill(trainer: TreeGRPOTrainer, inputs: Rows, rounds: int) -> Rows:
    """The rows of a step, those without signal replaced as far as `rounds` rounds of candidates find others.

    A round tries as many prompts as the step has. The groups are handed to the trainer's rollouts, which need not make them
    again. Logs `prompts_tried`, of all devices, and `groups_with_signal_at_first`, the share before anything was replaced.

    Args:
        inputs: this device's rows, each `num_generations` times in a row.

    Returns:
        as many rows in the same form.
    """
    size, accelerator = cast(int, trainer.args.num_generations), trainer.accelerator
    rollouts, data = cast(Rollouts, trainer.rollout_func), cast(Any, trainer.train_dataset)

    def roll(rows: Rows) -> list[tuple[int, Group, bool]]:
        """Number, group and signal of each row, of all devices in order."""
        groups = rollouts.groups(rows, trainer)
        signals = _signals(trainer, rows, groups) if rows else []
        return gather_object([(row["number"], *pair) for row, *pair in zip(rows, groups, signals, strict=True)])

    step = roll(inputs[::size])
    missing = [place for place, (_, _, signal) in enumerate(step) if not signal]
    metrics = trainer._metrics["train"]
    metrics["groups_with_signal_at_first"].append(1 - len(missing) / len(step))
    taken = [number for number, _, _ in step]
    waiting = candidates(len(data), taken, int(trainer.args.seed), trainer.state.global_step)
    tried = len(step)
    for _ in range(rounds):
        chunk, waiting = waiting[: len(step)], waiting[len(step) :]
        if not missing or not chunk:
            break
        tried += len(chunk)
        mine = chunk[accelerator.process_index :: accelerator.num_processes]
        found = {one[0]: one for one in roll([data[number] for number in mine]) if one[2]}
        better = [found[number] for number in chunk if number in found]
        for place, one in zip(missing, better, strict=False):  # the shorter of the two decides
            step[place] = one
        missing = missing[len(better) :]
    metrics["prompts_tried"].append(float(tried))
    prompts = len(inputs) // size
    own = step[accelerator.process_index * prompts :][:prompts]
    rollouts.ready = [group for _, group, _ in own]
    return [data[number] for number, _, _ in own for _ in range(size)]
