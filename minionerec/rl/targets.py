"""Which target a rollout is rewarded for: its row's own, or by the released code's look-up.

The released code does not keep the target with its row. It looks it up by the text of the prompt's history, in a dictionary
that is filled row by row, so that of rows with the same history the last one wins, and then with the rows of the validation
split, which win over all (`rl.py` of MiniOneRec). docs/reproduction.md has what that costs.
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

    Equal prompts stand for equal histories, titles or descriptions: each is written into its prompt whole, unless it was cut.
    The released code's further confusion of tasks, where a history of one title is taken for that title itself, is not
    repeated.

    Args:
        examples: of the train split, as `Prompts.sample` drew them.
    """
    if config.targets == "row":
        return list(examples)
    known: dict[tuple[int, ...], TokenExample] = {}
    splits: tuple[SplitName, ...] = ("train", "valid") if config.targets == "released" else ("train",)
    for split in splits:
        tasks: Sequence[TaskName] = (
            config.tasks if split == "train" else [RECOMMENDING]
        )  # the released code validates on this one
        for task in tasks:
            known |= {tuple(example.prompt): example for example in prompts.examples(task, split)}
    found = [
        replace(example, target=(given := known[tuple(example.prompt)]).target, completion=[*given.completion])
        for example in examples
    ]
    wrong = sum(now.completion != row.completion for now, row in zip(found, examples, strict=True))
    log.warning(
        "rl.targets is %s: %d of %d prompts (%.1f %%) are rewarded for another SID than their row's, as in the released code.",
        *(config.targets, wrong, len(examples), 100 * wrong / max(len(examples), 1)),
    )
    return found
