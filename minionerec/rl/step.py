"""What one step of RL passes between the methods of TRL's trainer that we override, in one object.

TRL decides with which arguments it calls a rollout function, a reward, a loss. What one of them finds out and a later one needs
does not fit into these arguments; it is kept in the `Step`, which the trainer holds.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Rows = list[dict[str, Any]]


class Groups(NamedTuple):
    """A group of SIDs for each prompt, in the order of log-probability, the most likely first; uniform draws have no order.

    Attributes:
        leaves: (prompts, G) numbers of the SIDs in the trie.
        logprobs: (prompts, G) in nats; None if another process made the groups (`refill`), or no policy was asked.
        log_weights: (prompts, G) log importance weights (`SampleResult.log_weights`), of stochastic beams only.
    """

    leaves: torch.Tensor
    logprobs: torch.Tensor | None = None
    log_weights: torch.Tensor | None = None


@dataclass
class Step:
    """One batch of rollouts, from its rows to its loss.

    It lives as long as its rollouts are made and scored, and as the losses of its micro-batches are computed; the next batch of
    rollouts begins a new one. In the order in which TRL calls:

    1. `TreeGRPOTrainer._generate_and_score_completions` begins the step with its `rows`. With `rl.dynamic_sampling: refill`
       other prompts have taken the place of some rows by then, and `groups` is there already.
    2. `Rollouts.__call__` reads `rows` and fills in `groups`, unless they are there.
    3. `ObjectiveTrainer._calculate_rewards` fills in `rewards`; the advantages are computed from `groups` and `rewards`.
    4. `ObjectiveTrainer._compute_loss` fills in `sft_targets` before the policy's forward, which leaves `sft_loss` and
       `entropy`; all are empty again when the micro-batch's loss is returned.

    Attributes:
        rows: of the dataset, each `num_generations` times in a row, as TRL hands them over.
        groups: the rollouts of this process.
        rewards: (rows of all processes,) the weighted sums.
        sft_targets: token ids of the target of each group in the micro-batch; None if there is no SFT loss.
        sft_loss: mean negative log-probability of these targets' tokens, with gradient.
        entropy: mean entropy of the policy over the micro-batch's completions, each a mean over its tokens, with gradient; None
            if there is no bonus for it.
    """

    rows: Rows
    groups: Groups | None = None
    rewards: torch.Tensor | None = None
    sft_targets: list[list[int]] | None = None
    sft_loss: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
