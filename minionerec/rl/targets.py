"""Which target a rollout is rewarded for: its row's own, or by the released code's look-up.

The released code does not keep the target with its row. It looks it up in a dictionary, by the text of the prompt's history. It
fills the dictionary row by row, so the last of several rows with one history wins; then it adds the rows of the validation
split, which override all of them (`rl.py` of MiniOneRec). docs/reproduction.md says what that costs.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from minionerec.config import RECOMMENDING, RlConfig, TaskName
from minionerec.data.dataset import SplitName
from minionerec.prompts.builder import Prompts
from minionerec.prompts.encode import TokenExample

log = logging.getLogger(__name__)


def with_targets(examples: Sequence[TokenExample], config: RlConfig, prompts: Prompts) -> list[TokenExample]:
    """The examples with the targets that `rl.targets` asks for; a warning counts the wrong ones.

    Equal prompts mean equal histories, titles or descriptions, because a prompt holds them whole unless it was cut. The
    released code also takes a history of one title for that title itself; this confusion of tasks is not repeated.

    Args:
        examples: of the train split, as `Prompts.sample` drew them.
    """
    if config.targets == "row":
        return list(examples)
    last_of_prompt: dict[tuple[int, ...], TokenExample] = {}
    splits: tuple[SplitName, ...] = ("train", "valid") if config.targets == "released" else ("train",)
    for split in splits:
        # The released code validates on the recommending task only.
        tasks: Sequence[TaskName] = config.tasks if split == "train" else [RECOMMENDING]
        for task in tasks:
            last_of_prompt |= {tuple(example.prompt): example for example in prompts.examples(task, split)}
    winners = [last_of_prompt[tuple(example.prompt)] for example in examples]
    retargeted = [
        replace(example, target=winner.target, completion=[*winner.completion])
        for example, winner in zip(examples, winners, strict=True)
    ]
    wrong = sum(now.completion != row.completion for now, row in zip(retargeted, examples, strict=True))
    log.warning(
        "rl.targets is %s: %d of %d prompts (%.1f %%) are rewarded for another SID than their row's, as in the released code.",
        *(config.targets, wrong, len(examples), 100 * wrong / max(len(examples), 1)),
    )
    return retargeted
