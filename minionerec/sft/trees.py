"""Examples to prefix trees: what SFT trains on and validates with."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from minionerec.config import RECOMMENDING, TASKS, SftConfig, TaskName
from minionerec.data.dataset import SplitName
from minionerec.errors import DataError
from minionerec.prompts.builder import Prompts, share_of
from minionerec.prompts.encode import TokenExample
from minionerec.sft.mixture import CachedTargets
from minionerec.sft.trainer import Tree
from minionerec.sft.weights import LossWeights
from minionerec.statistics.sampling import evenly_spaced
from minionerec.tree import Branch

ExamplesByTask = Mapping[TaskName, Sequence[TokenExample]]
PlacesByTask = Mapping[TaskName, np.ndarray]  # ascending rows of a split; items, for a task without history


@dataclass(frozen=True)
class Trees:
    """Examples grouped into prefix trees.

    Attributes:
        statistics: by task how many examples, tokens, labels and truncated examples there are.
    """

    trees: list[Tree]
    statistics: dict[str, dict[str, int]]


def examples_by_task(
    prompts: Prompts,
    tasks: Sequence[TaskName],
    split: SplitName,
    stride: int = 1,
    choose: Callable[[PlacesByTask], PlacesByTask] | None = None,
) -> ExamplesByTask:
    """The examples of several tasks; only those that are used are made.

    Args:
        stride: see `Prompts.examples`.
        choose: from the places of all examples (`Prompts.places`) to those of the examples that are used; None for all.

    Raises:
        ConfigError: an example is too long even with one item or character, or the tokenizer has no chat template.
        DataError: a task needs descriptions, and the catalog has none.
    """
    if choose is None:
        return {task: prompts.examples(task, split, stride) for task in tasks}
    places = choose({task: prompts.places(task, split) for task in tasks})
    return {task: prompts.examples(task, split, stride, of_task) for task, of_task in places.items()}


def drawn(
    shares: Mapping[TaskName, float], seed: int, rows: np.ndarray | None = None, count: int | None = None
) -> Callable[[PlacesByTask], PlacesByTask]:
    """Chooses the examples of some rows, of these the shares of the tasks, and of these at most so many.

    Args:
        shares, seed: see `share_of`.
        rows: (rows,) bool, the rows of the split that are used; None for all.
        count: see `at_most`.
    """

    def choose(places: PlacesByTask) -> PlacesByTask:
        some = {}
        for task, of_task in places.items():
            if rows is not None and TASKS[task].reads_history:
                of_task = of_task[rows[of_task]]
            some[task] = share_of(task, of_task, shares, seed)
        return at_most(some, count, seed)

    return choose


def at_most(places: PlacesByTask, count: int | None, seed: int) -> PlacesByTask:
    """Some of the examples of all tasks together, drawn with the seed and kept in order.

    Args:
        count: how many; None for all.
    """
    total = sum(map(len, places.values()))
    if count is None or count >= total:
        return places
    return _numbered(places, np.sort(random.Random(f"{seed} max_examples").sample(range(total), count)))


def _numbered(places: PlacesByTask, numbers: np.ndarray) -> PlacesByTask:
    """The places with some numbers, ascending, counted over all tasks."""
    some, first = {}, 0
    for task, of_task in places.items():
        begin, end = np.searchsorted(numbers, [first, first + len(of_task)])
        some[task] = of_task[numbers[begin:end] - first]
        first += len(of_task)
    return some


def with_answers_in_prompts(examples: ExamplesByTask) -> ExamplesByTask:
    """The released code's mistake, see `sft.answer_in_prompt`: prompts about an item end with their own answer."""
    return {
        task: of_task
        if TASKS[task].reads_history
        else [replace(example, prompt=[*example.prompt, *example.completion]) for example in of_task]
        for task, of_task in examples.items()
    }


def build_trees(
    examples: ExamplesByTask, size: int, weights: LossWeights | None = None, cached: CachedTargets | None = None
) -> Trees:
    """Put the examples of a group into a common tree, in the tasks' order.

    Args:
        size: most examples of a tree; a larger group becomes several trees. The stride with which the examples were made, so
            that prompts in a tree share most of their tokens.
        weights: of the labels; None weighs all alike.
        cached: what a cache says about the rows of the split, where all tasks go from a history to a SID; None for no cache.
    """
    trees: dict[tuple[TaskName, int, int], Tree] = {}
    seen: dict[tuple[TaskName, int], int] = {}  # examples of a group so far
    for task, of_task in examples.items():
        for example in of_task:
            number = seen.get((task, example.group), 0)
            seen[task, example.group] = number + 1
            label_weights = None if weights is None else weights.of(task, example)
            if cached is not None and example.row is not None:
                branch = cached.branch(example.row, example.prompt, example.completion, label_weights)
            else:
                branch = Branch(example.prompt, example.completion, label_weights, is_sid=example.is_sid)
            trees.setdefault((task, example.group, number // size), []).append(branch)
    return Trees(list(trees.values()), {task: _statistics(of_task) for task, of_task in examples.items()})


def _statistics(examples: Sequence[TokenExample]) -> dict[str, int]:
    labels = sum(len(example.completion) for example in examples)
    return {
        "examples": len(examples),
        "tokens": sum(len(example.prompt) for example in examples) + labels,
        "labels": labels,
        "truncated": sum(example.cut for example in examples),
    }


class EpochTrees(Sequence[Tree]):
    """The training trees of the epoch at hand, where each epoch has its own: the same examples in other words.

    Args:
        first: the trees of epoch 0.
        make: the trees of a later epoch, as many in each.
    """

    def __init__(self, first: list[Tree], make: Callable[[int], list[Tree]]) -> None:
        self._make = make
        self._epoch, self._trees = 0, first

    def begin(self, epoch: int) -> None:
        """Go over to an epoch's trees."""
        if epoch != self._epoch:
            trees = self._make(epoch)
            assert len(trees) == len(self._trees), "words decide what a tree holds, not how many there are"
            self._epoch, self._trees = epoch, trees

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, place: Any) -> Any:
        return self._trees[place]


class BeginEpochs(TrainerCallback):
    """Gives each epoch its own trees, also where an interrupted training resumes."""

    def __init__(self, trees: EpochTrees, batch_size: int) -> None:
        """Take the trees and the global batch size (trees)."""
        self._trees, self._steps = trees, len(trees) // batch_size

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Go over to the epoch of the step that comes next."""
        self._trees.begin(state.global_step // self._steps)


def training_trees(
    config: SftConfig,
    seed: int,
    prompts: Prompts,
    cached: CachedTargets | None = None,
    rows: np.ndarray | None = None,
) -> Trees:
    """Everything that is trained on.

    Args:
        seed: draws the shares of the tasks, and `sft.max_examples`.
        cached: see `build_trees`; of the train split.
        rows: the training rows that SFT sees, (rows,) bool (`rl.holdout`); None for all.

    Raises:
        ConfigError: `sft.level_weights` does not fit the SIDs, an example is too long, or the tokenizer has no chat template.
        DataError: a task needs descriptions, and the catalog has none.
    """
    dataset = prompts.dataset
    seen = dataset if rows is None else replace(dataset, train=dataset.train.filter(rows))
    weights = LossWeights(config, seen, prompts.index.levels)
    stride = config.history_stride
    choose = drawn(config.task_shares, seed, rows, config.max_examples)
    examples = examples_by_task(prompts, config.task_names, "train", stride, choose)
    if config.answer_in_prompt:
        examples = with_answers_in_prompts(examples)
    return build_trees(examples, stride, weights, cached)


def validation_trees(
    prompts: Prompts,
    count: int | None = None,
    cached: CachedTargets | None = None,
    tasks: Sequence[TaskName] = (RECOMMENDING,),
) -> list[Tree]:
    """Whole histories, unweighted: what evaluation will see.

    That is the recommending task, whatever is trained; a model that never answers with a SID is validated on what it is trained
    on, as far as it is asked about histories.

    Args:
        tasks: that are trained.
        count: at most so many, evenly spaced over the valid split; None for all.
        cached: see `build_trees`; of the valid split.

    Raises:
        DataError: the valid split is empty.
    """
    writes_sids = any(TASKS[task].answers_with_sid for task in tasks)
    asked = [] if writes_sids else [task for task in tasks if TASKS[task].reads_history]

    def spaced(places: PlacesByTask) -> PlacesByTask:
        total = sum(map(len, places.values()))
        return places if not total or count is None else _numbered(places, np.array(evenly_spaced(total, count)))

    trees = build_trees(examples_by_task(prompts, asked or [RECOMMENDING], "valid", choose=spaced), 1, cached=cached).trees
    if not trees:
        raise DataError(
            "The valid split of the run's data is empty, so there is nothing to choose the best model by. Prepare the data "
            "again with a valid split (data.split, data.parts)."
        )
    return trees
