"""The rows that RL trains on: prompts with their targets, and the items that no list for them may hold."""

import logging

import torch
from datasets import Dataset as TokenDataset

from minionerec.config import Config
from minionerec.data.dataset import Dataset, SplitName
from minionerec.errors import ConfigError
from minionerec.prompts.builder import Prompts
from minionerec.prompts.encode import TokenExample
from minionerec.training.holdout import rl_rows, rl_split
from minionerec.tree import CatalogTrie, without_padding

log = logging.getLogger(__name__)


def hidden_items(example: TokenExample, dataset: Dataset, split: SplitName = "train") -> list[int]:
    """The items of the example's history, which groups may have to leave out (`hides_history`); none without a history."""
    return [] if example.row is None else dataset.split(split)["history"][example.row].to_list()


def training_prompts(config: Config, prompts: Prompts) -> list[TokenExample]:
    """The prompts that are rolled out: examples of the tasks, from the rows of `rl.prompts`, at random, as many as fill whole
    steps.

    TRL would make a short step of the rest. If `eval.exclude_history` hides an example's target, no list can hold it, so there
    is nothing to learn: the example is left out.

    Raises:
        ConfigError: there are fewer examples than one step takes, or one is too long for the model.
        DataError: a task needs descriptions, and the catalog has none; or `rl.holdout` holds out nothing, or everything.
    """
    rl, dataset, index = config.rl, prompts.dataset, prompts.index
    split, rows = rl_split(config), rl_rows(config, dataset)
    examples = prompts.sample(rl.tasks, split, rl.max_examples, config.seed, rl.task_shares, rows)
    if config.eval.exclude_history:
        sampled = len(examples)
        examples = [
            example
            for example in examples
            if not {*index.items(index.codes[example.target].tolist())} <= {*hidden_items(example, dataset, split)}
        ]
        if sampled > len(examples):
            log.info("%d prompts are left out: eval.exclude_history hides their targets.", sampled - len(examples))
    step = rl.prompts_per_step
    if len(examples) < step:
        raise ConfigError(f"rl.prompts_per_step is {step}, but there are only {len(examples)} prompts; lower it.")
    return examples[: len(examples) // step * step]


def token_rows(
    examples: list[TokenExample], trie: CatalogTrie, dataset: Dataset | None, split: SplitName = "train"
) -> TokenDataset:
    """The examples as the trainer takes them.

    Args:
        trie: the catalog's SIDs.
        dataset: brings the histories that rollouts leave out; None if they leave out nothing.
        split: whose rows the examples show.

    Returns:
        per example its `prompt` and its `target` as token ids, `target_leaf`, the target's number in the trie, `train_row` of
        the training split (None for a task without history and for another split), `rollout_id`, which counts the rows from 0,
        and, if `dataset` is given, `hidden`, the items that no list may hold.
    """
    items = torch.tensor([example.target for example in examples], dtype=torch.long, device=trie.device)
    leaves = trie.leaf_of_item[items].long()
    columns = {
        "prompt": [example.prompt for example in examples],
        "target": [without_padding(sid) for sid in trie.sid(leaves).tolist()],
        "target_leaf": leaves.tolist(),
        "train_row": [example.row if split == "train" else None for example in examples],
        "rollout_id": list(range(len(examples))),
    }
    if dataset is not None:
        columns["hidden"] = [hidden_items(example, dataset, split) for example in examples]
    return TokenDataset.from_dict(columns)
