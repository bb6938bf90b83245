"""`sft.max_examples`: a look at a training with some of the examples."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.artifacts import read_json
from minionerec.cli import main
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts
from minionerec.prompts.encode import Encoder
from minionerec.sft.trees import at_most, drawn, examples_by_task, validation_trees
from minionerec.statistics.sampling import evenly_spaced
from minionerec.training.evaluator import RankingEvaluator
from tests.examples import examples
from tests.recommend.conftest import SIZES
from tests.small import losses, random_dataset, untrained_model


@examples(100)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 3))
def test_so_many_of_all_tasks_together_in_their_order(sizes, count, seed):
    examples = {f"task {task}": 100 * task + np.arange(size) for task, size in enumerate(sizes)}
    some = at_most(examples, count, seed)
    assert list(some) == list(examples)
    assert sum(map(len, some.values())) == min(count, sum(sizes))
    for task, of_task in some.items():
        assert of_task.tolist() == sorted({*of_task.tolist()}) and {*of_task.tolist()} <= {*examples[task].tolist()}
    again = at_most(examples, count, seed)
    assert all(some[task].tolist() == again[task].tolist() for task in some)
    assert at_most(examples, None, seed) is examples


def test_each_example_is_drawn_alike_often():
    examples = {"a": np.arange(5), "b": np.arange(5, 20)}
    counts = [0] * 20
    for seed in range(2000):
        for of_task in at_most(examples, 4, seed).values():
            for example in of_task:
                counts[example] += 1
    assert all(320 < count < 480 for count in counts)  # 400 expected, standard deviation 18
    assert at_most(examples, 4, 1)["b"].tolist() != at_most(examples, 4, 2)["b"].tolist()


def test_only_what_is_drawn_is_made_and_it_is_what_would_have_been_made(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path))
    dataset, index = random_dataset()
    _, tokenizer = untrained_model(dataset, index, SIZES)
    prompts, tasks = Prompts(dataset, index, tokenizer), ["history_sid_to_sid", "title_to_sid"]
    rows = np.arange(len(dataset.train)) % 3 > 0
    places = {task: prompts.places(task, "train", rows if task == tasks[0] else None) for task in tasks}
    every = [example for task in tasks for example in prompts.examples(task, "train", 3, places[task])]
    encoded = []
    original = Encoder.examples
    monkeypatch.setattr(Encoder, "examples", lambda self, some: encoded.extend(some) or original(self, some))
    some = examples_by_task(prompts, tasks, "train", 3, drawn({}, 5, rows, 20))
    assert len(encoded) == 20
    numbers = sorted(random.Random("5 max_examples").sample(range(len(every)), 20))
    expected = [every[number] for number in numbers]
    made = [example for of_task in some.values() for example in of_task]
    fields = ("target", "is_sid", "row", "cut")
    assert [[getattr(example, name) for name in fields] for example in made] == [
        [getattr(example, name) for name in fields] for example in expected
    ]
    assert [[*example.prompt, *example.completion] for example in made] == [
        [*example.prompt, *example.completion] for example in expected
    ]


def test_validation_takes_evenly_spaced_rows():
    dataset, index = random_dataset()
    _, tokenizer = untrained_model(dataset, index, SIZES)
    prompts = Prompts(dataset, index, tokenizer)
    every = validation_trees(prompts)
    assert len(every) == len(dataset.valid)
    texts = [[[*branch.prompt], [*branch.completion]] for [branch] in every]
    some = [[[*branch.prompt], [*branch.completion]] for [branch] in validation_trees(prompts, 7)]
    assert some == [texts[row] for row in evenly_spaced(len(texts), 7)]


def test_a_look_trains_and_validates_no_more(copy, capsys):
    made = copy(max_examples=20, epochs=2, evaluations=2, best_metric="NDCG@10", batch_size=4, micro_batch=4)
    decoded = []

    class Counting(RankingEvaluator):
        def __init__(self, recommender, config, examples, *others):
            decoded.append(examples)
            super().__init__(recommender, config, examples, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minionerec.sft.train.RankingEvaluator", Counting)
        run(made, ("sft",))
    manifest = read_json(made.folder / "sft/manifest.json")
    assert manifest["metrics"]["examples"] == 20 and manifest["config"]["sft"]["max_examples"] == 20
    assert decoded == [20] and len([row for row in losses(made.folder / "sft") if "eval_loss" in row]) == 2
    assert main(["sft", "--config", str(made.folder), "--sft.max_examples", "0"]) == 2
    assert "sft.max_examples" in capsys.readouterr().err
