"""The rows that RL trains on: prompts with their targets, and what no list for them may hold."""

import logging

import torch
from datasets import Dataset as TokenDataset
from transformers import PreTrainedTokenizerBase

from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError
from minionerec.prompts.builder import TokenExample, sample_examples
from minionerec.sid.index import SidIndex
from minionerec.tree import NO_TOKEN

log = logging.getLogger(__name__)


def hidden_items(example: TokenExample, dataset: Dataset) -> list[int]:
    """Item indices of the example's history, those that `eval.exclude_history` leaves out; none for a task without history."""
    return [] if example.row is None else dataset.train["history"][example.row].to_list()


def training_prompts(
    config: Config, dataset: Dataset, index: SidIndex, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> list[TokenExample]:
    """What is rolled out: examples of the tasks at random, as many as fill whole steps (TRL makes a short one of the rest).

    Where `eval.exclude_history` hides an example's target, it is left out: no list can hold it, so there is nothing to learn.

    Args:
        context: most tokens the model can read; None where unlimited.

    Raises:
        ConfigError: there are fewer than one step takes, or see `sample_examples`.
    """
    rl = config.rl
    examples = sample_examples(
        rl.tasks,
        dataset,
        index,
        tokenizer,
        split="train",
        count=rl.max_examples,
        seed=config.seed,
        context=context,
        prompts=config.resolved_prompts.for_training(),
        shares=rl.task_shares,
    )
    if config.eval.exclude_history:
        drawn = len(examples)
        examples = [
            example
            for example in examples
            if not {*index.items(index.codes[example.target].tolist())} <= {*hidden_items(example, dataset)}
        ]
        if drawn > len(examples):
            log.info("%d prompts are left out: eval.exclude_history hides their targets.", drawn - len(examples))
    step = rl.prompts_per_step
    if len(examples) < step:
        raise ConfigError(f"rl.prompts_per_step is {step}, but there are only {len(examples)} prompts; lower it.")
    return examples[: len(examples) // step * step]


def token_rows(examples: list[TokenExample], token_ids: torch.Tensor, dataset: Dataset | None) -> TokenDataset:
    """The examples as the trainer takes them.

    Args:
        token_ids: the catalog's SIDs, (items, levels).
        dataset: where histories are hidden from the rollouts; None where nothing is.

    Returns:
        per example its `prompt` and `target` as token ids, its `row` of the train split, its `number`, and `hidden`, the items
        that no list may hold (`dataset` given).
    """
    columns = {
        "prompt": [example.prompt for example in examples],
        "target": [[token for token in token_ids[example.target].tolist() if token != NO_TOKEN] for example in examples],
        "row": [example.row for example in examples],
        "number": list(range(len(examples))),
    }
    if dataset is not None:
        columns["hidden"] = [hidden_items(example, dataset) for example in examples]
    return TokenDataset.from_dict(columns)
