"""Dynamic sampling: prompts whose group teaches nothing are replaced by others whose group does.

DAPO (Yu et al., 2025, section 3.2). Which prompts take part in a step depends on the seed, the step and the policy, not on the
number of processes or the size of micro-batches: every process rolls out its share of the candidates, and all see all results.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import gather_object

from minionerec.rl.monitor import with_signal
from minionerec.rl.rollouts import Rollouts
from minionerec.rl.step import Groups, Rows, Step
from minionerec.rl.trainer import TreeGRPOTrainer


class _Rolled(NamedTuple):
    """A prompt with its group and whether the group's rewards differ."""

    rollout_id: int
    leaves: list[int]
    signal: bool


def candidates(prompts: int, taken: list[int], seed: int, step: int) -> list[int]:
    """The rollout ids of all prompts but the taken ones, in the random order in which a step tries them."""
    order = np.random.default_rng([seed, step]).permutation(prompts)
    return order[~np.isin(order, taken)].tolist()


def _signals(trainer: TreeGRPOTrainer, rows: Rows, groups: Groups) -> list[bool]:
    """Which groups have rewards that are not all equal."""
    size = cast(int, trainer.args.num_generations)
    columns = {name: [row[name] for row in rows for _ in range(size)] for name in ("target", "target_leaf", "train_row")}
    columns["leaf"] = groups.leaves.flatten().tolist()
    completions = cast(Rollouts, trainer.rollout_func).completions(groups)
    functions = zip(cast(list, trainer.reward_funcs), trainer.reward_weights.tolist(), strict=True)
    weighted = [weight * torch.tensor(function(completion_ids=completions, **columns)) for function, weight in functions]
    return with_signal(torch.stack(weighted).sum(0), size)[::size].tolist()


def refill(trainer: TreeGRPOTrainer, inputs: Rows, rounds: int) -> Step:
    """A step whose rows without signal are replaced as far as `rounds` rounds of candidates have some with signal.

    A round tries as many prompts as the step has. Logs `prompts_tried`, of all processes, and `groups_with_signal_at_first`,
    the share before any prompt was replaced.

    Args:
        inputs: this process's rows, each `num_generations` times in a row.

    Returns:
        a step of as many rows, with their groups.
    """
    size, accelerator = cast(int, trainer.args.num_generations), trainer.accelerator
    rollouts, data = cast(Rollouts, trainer.rollout_func), cast(Any, trainer.train_dataset)

    def roll(rows: Rows) -> list[_Rolled]:
        """Roll out this process's rows; the results of all processes in order."""
        groups = rollouts.groups(rows, trainer)
        signals = _signals(trainer, rows, groups) if rows else []
        mine = zip((row["rollout_id"] for row in rows), groups.leaves.tolist(), signals, strict=True)
        return [_Rolled(*rolled) for rolled in gather_object(list(mine))]

    step = roll(inputs[::size])
    without_signal = [position for position, rolled in enumerate(step) if not rolled.signal]
    metrics = trainer._metrics["train"]
    metrics["groups_with_signal_at_first"].append(1 - len(without_signal) / len(step))
    taken = [rolled.rollout_id for rolled in step]
    waiting = candidates(len(data), taken, int(trainer.args.seed), trainer.state.global_step)
    tried = len(step)
    for _ in range(rounds):
        chunk, waiting = waiting[: len(step)], waiting[len(step) :]
        if not without_signal or not chunk:
            break
        tried += len(chunk)
        share = chunk[accelerator.process_index :: accelerator.num_processes]
        useful = {rolled.rollout_id: rolled for rolled in roll([data[number] for number in share]) if rolled.signal}
        # In the order of `chunk`, which does not depend on how the processes shared it.
        replacements = [useful[number] for number in chunk if number in useful]
        for position, rolled in zip(without_signal, replacements, strict=False):  # the shorter of the two decides
            step[position] = rolled
        without_signal = without_signal[len(replacements) :]
    metrics["prompts_tried"].append(float(tried))
    prompts = len(inputs) // size
    mine = step[accelerator.process_index * prompts :][:prompts]
    leaves = torch.tensor([rolled.leaves for rolled in mine], device=accelerator.device)
    return Step([data[rolled.rollout_id] for rolled in mine for _ in range(size)], Groups(leaves))
