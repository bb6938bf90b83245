"""Several wordings of a task: drawn by row and epoch in training, asked about one by one, and averaged over in evaluation."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from transformers import TrainerState

from minionerec.artifacts import Manifest
from minionerec.config import NAMING, RECOMMENDING, TASKS, Config, EvalConfig, ModelConfig, PromptsConfig, SftConfig
from minionerec.errors import ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import values_per_row
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.prompts.tasks import Words
from minionerec.prompts.wordings import PLAIN, SEVERAL
from minionerec.sft import train
from minionerec.sft.trees import BeginEpochs, EpochTrees, training_trees
from tests.small import config, random_dataset

DRAWN = PromptsConfig(wording="several")


@pytest.fixture(scope="module")
def prompts():
    dataset, index = random_dataset()
    model, tokenizer = scratch.create(tokenizer_corpus(dataset, DRAWN, list(TASKS)), ModelConfig(hidden_size=16, heads=2), 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return Prompts(dataset, index, tokenizer, DRAWN)


def test_a_wording_that_is_trained_is_asked_with_the_same_tokens(prompts):
    history = prompts.dataset.train["history"].to_list()
    assert prompts.wordings == len(SEVERAL[RECOMMENDING].questions) > 1
    asked = [replace(prompts, asked=number) for number in range(prompts.wordings)]
    seen = Counter()
    for epoch in range(3):
        examples = replace(prompts, epoch=epoch).examples(RECOMMENDING, "train")
        for items, example in zip(history, examples, strict=True):
            same = [number for number, one in enumerate(asked) if one.ask(items) == list(example.prompt)]
            assert len(same) == 1
            seen.update(same)
    assert set(seen) == set(range(prompts.wordings))


def test_validation_and_evaluation_ask_with_the_first_wording_which_is_the_plain_one(prompts):
    plain = replace(prompts, config=PromptsConfig())
    for task, words in SEVERAL.items():
        assert words.questions[0] == PLAIN[task].questions[0] and words.completion == PLAIN[task].completion
        assert len(set(words.questions)) == len(words.questions)
    assert prompts.examples(RECOMMENDING, "valid") == plain.examples(RECOMMENDING, "valid")
    assert prompts.ask([3, 1]) == plain.ask([3, 1]) != replace(prompts, asked=1).ask([3, 1])


def test_rows_and_epochs_draw_evenly_and_always_alike():
    choices = tuple("abcdefgh")
    drawn = [[Words(DRAWN, epoch).choice(choices, RECOMMENDING, row) for row in range(4000)] for epoch in (0, 1)]
    again = [Words(DRAWN, 0).choice(choices, RECOMMENDING, row) for row in range(4000)]
    assert drawn[0] == again != drawn[1]
    for one in drawn:
        assert stats.chisquare(list(Counter(one).values())).pvalue > 1e-3 and set(one) == set(choices)
    stays = np.mean([first == second for first, second in zip(*drawn, strict=True)])
    assert stays == pytest.approx(1 / 8, abs=0.03)  # epochs are independent


def test_each_epoch_has_its_own_trees_of_the_same_examples(prompts):
    sft = SftConfig(tasks=["history_sid_to_sid", "title_to_sid"], task_shares={"title_to_sid": 0.5}, max_examples=40)
    made = []

    def make(epoch):
        made.append(epoch)
        return training_trees(sft, 0, replace(prompts, epoch=epoch)).trees

    trees = EpochTrees(make(0), make)
    first = list(trees)
    callback = BeginEpochs(trees, batch_size=4)
    steps = len(trees) // 4
    for step, epoch in ((0, 0), (1, 0), (steps - 1, 0), (steps, 1), (steps + 1, 1), (3 * steps, 3)):
        callback.on_epoch_begin(None, TrainerState(global_step=step), None)
        assert made[-1] == epoch and len(trees) == len(first)
    answers = [[[list(branch.completion) for branch in tree] for tree in some] for some in (first, list(trees))]
    assert answers[0] == answers[1]
    assert [branch.prompt for tree in first for branch in tree] != [branch.prompt for tree in trees for branch in tree]
    assert made == [0, 1, 3]  # an epoch's trees are made once


def test_a_model_is_trained_in_several_wordings_and_the_mean_over_them_is_measured(tmp_path, monkeypatch):
    settings = config(
        tmp_path,
        prompts={"wording": "several"},
        sft={"tasks": ["history_sid_to_sid", "title_to_sid"], "epochs": 2, "evaluations": 1},
        eval={"wordings": "mean", "num_beams": 10, "oracle_examples": 3, "resamples": 50},
    )
    epochs = []
    monkeypatch.setattr(
        train, "EpochTrees", lambda first, make: EpochTrees(first, lambda epoch: epochs.append(epoch) or make(epoch))
    )
    run(settings, ("data", "sid", "sft"))
    assert epochs == [1]
    manifest, _ = evaluate(settings, "sft")
    folder = settings.folder / "eval/sft"
    count = len(SEVERAL[RECOMMENDING].questions)
    names = ["predictions.jsonl", *(f"predictions-{number}.jsonl" for number in range(2, count + 1))]
    assert set(manifest.files) == {*names, "metrics.json", "oracle.jsonl", "wordings.json"}
    values = [values_per_row(RankedLists.read(folder / name), (10,), "item")["NDCG@10"] for name in names]
    stored = json.loads((folder / "wordings.json").read_text())
    assert stored["wordings"] == count
    cell = stored["metrics"]["NDCG@10"]
    assert cell["value"] == pytest.approx(np.mean(values)) == manifest.metrics["NDCG@10, mean over wordings"]
    assert cell["single"] == pytest.approx([one.mean() for one in values]) and cell["low"] <= cell["value"] <= cell["high"]
    assert manifest.metrics["NDCG@10"] == pytest.approx(values[0].mean())
    # The first wording alone is another artefact, with the same lists.
    first = replace(settings, eval=replace(settings.eval, wordings="first"))
    before = (folder / "predictions.jsonl").read_bytes()
    alone, fresh = evaluate(first, "sft")
    assert fresh and (folder / "predictions.jsonl").read_bytes() == before
    assert set(alone.files) == {"predictions.jsonl", "metrics.json", "oracle.jsonl"}
    assert Manifest.load(settings.folder / "sft").config["prompts"]["wording"] == "several"
    with pytest.raises(ConfigError, match=r"trained with other prompts \(wording: several\)"):
        evaluate(replace(first, prompts=PromptsConfig()), "sft")


def test_settings_that_contradict_several_wordings():
    with pytest.raises(ConfigError, match=r"eval.wordings is mean, but prompts.wording is plain"):
        Config(eval=EvalConfig(wordings="mean"))
    titles = {"sft": SftConfig(tasks=[NAMING], best_metric="loss"), "eval": EvalConfig(wordings="mean", grounding="base")}
    with pytest.raises(
        ConfigError, match=r"wordings is mean, but no task .* has a SID as its answer, and titles .* first wording"
    ):
        Config(prompts=DRAWN, model=ModelConfig(init="from_pretrained", path="x"), **titles)
    with pytest.raises(ConfigError, match=r"sft.micro_tokens asks for the longest"):
        Config(prompts=DRAWN, sft=SftConfig(micro_tokens=4096))
