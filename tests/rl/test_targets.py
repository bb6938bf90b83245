import logging
from dataclasses import replace

import polars as pl
import pytest

from minionerec.artifacts import read_json
from minionerec.config import DataConfig, ModelConfig, RlConfig
from minionerec.data.dataset import Dataset
from minionerec.data.prepare import prepare_data
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.rl.targets import with_targets
from tests.shared import shared
from tests.small import config, listed_examples, random_dataset


@pytest.fixture
def prompts():
    """The first three train rows have one history and three targets; the first valid row has it too, and a fourth."""
    dataset, index = random_dataset()
    train, valid = dataset.train.to_dicts(), dataset.valid.to_dicts()
    for row, target in zip(train[:3], (5, 6, 7), strict=True):
        row |= {"history": [1, 2], "target": target, "position": 2}
    valid[0] |= {"history": [1, 2], "target": 8, "position": 2}
    train[3] |= {"history": [2, 1], "target": 9, "position": 2}  # another order, another history
    dataset = replace(
        dataset,
        train=pl.DataFrame(train, schema=dataset.train.schema),
        valid=pl.DataFrame(valid, schema=dataset.valid.schema),
    )
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), ModelConfig(hidden_size=16, heads=2, vocabulary=400), 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return Prompts(dataset, index, tokenizer)


@pytest.mark.parametrize(
    ("targets", "expected"), [("row", [5, 6, 7, 9]), ("last_row", [7, 7, 7, 9]), ("released", [8, 8, 8, 9])]
)
def test_equal_histories_get_the_last_target_and_validation_wins(prompts, targets, expected, caplog):
    examples = listed_examples(prompts, "history_sid_to_sid")
    with caplog.at_level(logging.WARNING):
        targeted = with_targets(examples, RlConfig(targets=targets), prompts)
    assert [example.target for example in targeted[:4]] == expected
    sids = [prompts.tokenizer.decode(example.completion) for example in targeted[:4]]
    assert sids == [prompts.index.text(item) for item in expected]
    assert [example.prompt for example in targeted] == [example.prompt for example in examples]
    assert bool(caplog.records) == (targets != "row")


def test_a_title_that_several_items_have_stands_for_the_last(prompts):
    catalog = prompts.dataset.catalog
    titles = catalog["title"].to_list()
    titles[20] = titles[4]
    prompts = replace(prompts, dataset=replace(prompts.dataset, catalog=catalog.with_columns(title=pl.Series(titles))))
    examples = listed_examples(prompts, "title_to_sid")
    settings = RlConfig(targets="last_row", tasks=["history_sid_to_sid", "title_to_sid"])
    targeted = with_targets(examples, settings, prompts)
    assert [example.target for example in targeted] == [20 if item == 4 else item for item in range(30)]


def test_rl_is_rewarded_for_them(tmp_path):
    """A stage of its own: the targets in its rows are the look-up's, and the key of the artefact tells."""
    made = config(tmp_path, sft={"epochs": 2}, rl={"evaluations": 0})
    run(made, ("data", "sid", "sft", "rl"))
    first = (made.folder / "rl/model/model.safetensors").read_bytes()
    run(replace(made, rl=replace(made.rl, targets="released"), replace=True), ("rl",))
    assert (made.folder / "rl/model/model.safetensors").read_bytes() != first
    assert read_json(made.folder / "rl/manifest.json")["config"]["rl"]["targets"] == "released"


def test_shares_on_the_released_files(tmp_path):
    """How many rewards are wrong on the rebuilt part of Industrial; reference.md has 14.3 % and 8.0 % on its own rebuild."""
    made = config(tmp_path)
    data = DataConfig(source="released", path=str(shared("data/amazon")), category="Industrial_and_Scientific", max_history=10)
    prepare_data(replace(made, data=data))
    dataset = Dataset.load(made.folder / "data")
    histories = [tuple(history) for history in dataset.train["history"].to_list()]
    last = dict(zip(histories, dataset.train["target"].to_list(), strict=True))
    wrong = sum(last[history] != target for history, target in zip(histories, dataset.train["target"], strict=True))
    assert 0.10 < wrong / len(histories) < 0.20
