import dataclasses

import numpy as np
import pytest

from minionerec.artifacts import Recipe
from minionerec.config import Config, EvalConfig, RlConfig, SftConfig, SftMixtureConfig
from minionerec.config.mixture import MixtureConfig
from minionerec.data.holdout import held_out_rows
from minionerec.errors import ConfigError
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.rl.early import check_group
from minionerec.rl.rows import token_rows, training_prompts
from minionerec.sft.trees import training_trees
from minionerec.training.holdout import rl_rows, sft_rows
from minionerec.tree import CatalogTrie
from tests.small import random_dataset

TASKS = ["history_sid_to_sid", "title_to_sid", "description_to_sid", "history_title_to_sid"]


@pytest.fixture(scope="module")
def prompts():
    """The prompts of a catalog with descriptions."""
    dataset, index = random_dataset()
    described = dataset.catalog.with_columns(description=dataset.catalog["title"] + ", as described")
    dataset = dataclasses.replace(dataset, catalog=described)
    config = Config()
    sizes = dataclasses.replace(config.model, hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return Prompts(dataset, index, tokenizer)


def sampled(prompts, exclude_history=False, **fields):
    """What is rolled out with these fields of section `rl`."""
    rl = RlConfig(**{"max_examples": None, "prompts_per_step": 4, "micro_batch_prompts": 4, **fields})
    return training_prompts(Config(rl=rl, eval=EvalConfig(exclude_history=exclude_history)), prompts)


def test_each_task_asks_in_its_words_and_keeps_its_own_target(prompts):
    dataset, tokenizer, token_ids = prompts.dataset, prompts.tokenizer, prompts.sid_tokens
    trie = CatalogTrie.from_codes(token_ids)
    titles = dataset.catalog["title"].to_list()
    for task in TASKS:
        examples = sampled(prompts, tasks=[task])
        rows = token_rows(examples, trie, dataset)
        assert len(rows) > 20 and rows["rollout_id"][:] == list(range(len(rows)))
        for example, row in zip(examples, rows, strict=True):
            text = tokenizer.decode(row["prompt"])
            assert row["target"] == token_ids[example.target].tolist() == example.completion
            assert example.target in trie.items(row["target_leaf"])
            if task.startswith("history"):
                of = dataset.train.row(row["train_row"], named=True)
                assert of["target"] == example.target and of["history"] == row["hidden"]
                names = titles if "title" in task else [tokenizer.decode(sid) for sid in token_ids.tolist()]
                assert all(names[item] in text for item in of["history"])
            else:
                assert row["train_row"] is None and row["hidden"] == [] and titles[example.target] in text


def test_whole_steps_of_shares_of_the_tasks(prompts):
    every = sampled(prompts, tasks=TASKS)
    some = sampled(prompts, tasks=TASKS, task_shares={"history_title_to_sid": 0.25, "title_to_sid": 0.5})
    rows = len(prompts.dataset.train)
    assert len(every) == (2 * rows + 60) // 4 * 4
    assert len(some) == (rows + round(rows * 0.25) + 15 + 30) // 4 * 4
    few = sampled(prompts, tasks=TASKS, max_examples=30)  # only these are made, so groups are numbered anew
    assert [dataclasses.replace(example, group=0) for example in few] == [
        dataclasses.replace(example, group=0) for example in every[:28]
    ]


def test_a_target_that_no_list_may_hold_is_not_rolled_out(prompts):
    dataset = prompts.dataset
    repeats = [
        row for row, (history, target) in enumerate(dataset.train.select("history", "target").rows()) if target in history
    ]
    rows = {example.row for example in sampled(prompts, exclude_history=True, prompts_per_step=1, micro_batch_prompts=1)}
    assert repeats and rows == {*range(len(dataset.train))} - {*repeats}


def test_fewer_prompts_than_a_step(prompts):
    with pytest.raises(ConfigError, match=r"rl.prompts_per_step is 5000, but there are only \d+ prompts; lower it"):
        sampled(prompts, prompts_per_step=5000, micro_batch_prompts=5000)


def test_a_group_must_find_enough_items_outside_a_history():
    config = RlConfig(num_generations=16)
    check_group(config, 20, 4)
    with pytest.raises(ConfigError, match=r"only 20 SIDs, and 5 items of a history are left out \(eval.exclude_history or"):
        check_group(config, 20, 5)
    check_group(RlConfig(num_generations=16, rollouts="sampling"), 20, 5)


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"objective": "exact", "normalise_over": "catalog", "rewards": {"rule": 1.0}}, "rl.objective exact"),
        (
            {
                "importance_weights": True,
                "rollouts": "stochastic",
                "normalise_over": "catalog",
                "loss": "dr_grpo",
                "rewards": {"rule": 1.0},
            },
            "rl.importance_weights",
        ),
    ],
)
def test_objectives_of_the_whole_catalog_hide_nothing(fields, option):
    with pytest.raises(ConfigError, match=f"{option} is about the whole catalog"):
        Config(rl=RlConfig(**fields), eval=EvalConfig(exclude_history=True))


@pytest.mark.parametrize("holdout", ["users", "last"])
def test_sft_and_rl_share_the_training_rows_and_no_row_is_in_both(prompts, holdout):
    dataset, every = prompts.dataset, {*range(len(prompts.dataset.train))}
    rl = RlConfig(holdout=holdout, holdout_share=0.5, prompts_per_step=1, micro_batch_prompts=1, max_examples=None)
    config = Config(rl=rl)
    trees = training_trees(SftConfig(tasks=["history_sid_to_sid", "title_to_sid"]), 42, prompts, rows=sft_rows(config, dataset))
    assert trees.statistics["title_to_sid"]["examples"] == len(dataset.catalog)  # tasks about items stay whole
    configs = {name: Config(rl=dataclasses.replace(rl, prompts=name)) for name in ("train", "holdout")}
    asked = {name: {example.row for example in training_prompts(some, prompts)} for name, some in configs.items()}
    assert asked["train"] | asked["holdout"] == every and not asked["train"] & asked["holdout"] and asked["holdout"]
    assert trees.statistics["history_sid_to_sid"]["examples"] == len(asked["train"])
    assert asked["train"] == {*np.flatnonzero(sft_rows(config, dataset)).tolist()}
    if holdout == "users":
        users = {name: {*dataset.train["user"].gather(sorted(rows)).to_list()} for name, rows in asked.items()}
        assert not users["train"] & users["holdout"]


def test_an_sft_that_replaces_one_of_another_seed_draws_its_own_users(prompts, tmp_path):
    """And RL asks about what the finished model has not seen, whatever seed RL has."""
    dataset, rl = prompts.dataset, RlConfig(holdout="last", holdout_share=0.5, prompts="holdout")
    before, after = (Config(out=str(tmp_path / "run"), rl=rl, seed=seed) for seed in (1, 2))
    expected = [~held_out_rows(dataset.train, "last", 0.5, seed) for seed in (1, 2)]
    assert (expected[0] != expected[1]).any()
    with Recipe("sft", before.folder / "sft", config={}, inputs={}, seed=before.seed).write():
        pass
    assert (sft_rows(after, dataset) == expected[1]).all()
    assert (rl_rows(after, dataset) == ~expected[0]).all()


def test_rare_items_are_counted_in_the_rows_that_sft_sees(prompts):
    rows = np.arange(len(prompts.dataset.train)) % 2 == 0
    config = SftConfig(tasks=["history_sid_to_sid"], frequency_power=1.0)
    half = dataclasses.replace(prompts, dataset=dataclasses.replace(prompts.dataset, train=prompts.dataset.train.filter(rows)))
    seen, alone = (training_trees(config, 0, *some).trees for some in ((prompts, None, rows), (half,)))
    assert [branch.weights for (branch,) in seen] == [branch.weights for (branch,) in alone]


def test_the_valid_split_as_rl_data(prompts):
    dataset = prompts.dataset
    rl = RlConfig(prompts="valid", evaluations=0, prompts_per_step=1, micro_batch_prompts=1)
    examples = training_prompts(Config(rl=rl, eval=EvalConfig(exclude_history=True)), prompts)
    rows = token_rows(examples, CatalogTrie.from_codes(prompts.sid_tokens), dataset, "valid")
    assert {example.row for example in examples} <= {*range(len(dataset.valid))} and len(rows) > 10
    for example, row in zip(examples, rows, strict=True):
        of = dataset.valid.row(example.row, named=True)
        assert (row["hidden"], row["train_row"], example.target) == (of["history"], None, of["target"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": "holdout"}, "rl.prompts is holdout, but rl.holdout is none"),
        ({"holdout": "users", "targets": "last_row"}, "looks targets up in all training rows, those"),
        ({"prompts": "valid"}, "the valid split can choose no model: its rows are trained on. Set rl.evaluations 0"),
        ({"prompts": "valid", "evaluations": 0, "tasks": ["title_to_sid"]}, "title_to_sid, which asks about items"),
        ({"prompts": "valid", "evaluations": 0, "rewards": {"collaborative": 1.0}}, "rl.rewards collaborative scores"),
        ({"holdout": "last", "prompts": "holdout", "targets": "last_row"}, "rl.targets last_row looks targets up"),
        ({"holdout": "users", "holdout_share": 1.0}, "nobody would be left for SFT"),
        ({"holdout_share": 0.5}, "rl.holdout_share is set, but it has an effect with rl.holdout: users or last only"),
    ],
)
def test_rows_that_do_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        RlConfig(**fields)


def test_nothing_is_mixed_in_that_knows_the_rows():
    mixed = MixtureConfig(components=["markov"])
    catalog = {"sft": SftConfig(normalise_over="catalog"), "eval": EvalConfig(normalise_over="catalog")}
    with pytest.raises(ConfigError, match=r"rl.prompts is valid, but mixture.components names some"):
        Config(rl=RlConfig(prompts="valid", evaluations=0), mixture=mixed, **catalog)
    helped = EvalConfig(normalise_over="catalog", assistant="sasrec")
    with pytest.raises(ConfigError, match=r"rl.prompts is valid, but eval.assistant is sasrec without a weight"):
        Config(rl=RlConfig(prompts="valid", evaluations=0), eval=helped)
    Config(rl=RlConfig(prompts="valid", evaluations=0), eval=dataclasses.replace(helped, assistant_weight=0.5))
    trained = SftConfig(tasks=["history_sid_to_sid"], normalise_over="catalog", mixture=SftMixtureConfig(weights="em"))
    with pytest.raises(ConfigError, match=r"rl.holdout is users, but sft.mixture.weights is em"):
        Config(rl=RlConfig(holdout="users"), mixture=mixed, **{**catalog, "sft": trained})
