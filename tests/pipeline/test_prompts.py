"""The released code's tasks in its words through SFT, RL and evaluation, and its evaluation's other sentence."""

import logging
from dataclasses import replace

import pytest

from minionerec.artifacts import read_json
from minionerec.config import RECOMMENDING, RELEASED_TASKS, TASKS, PromptsConfig, Task
from minionerec.errors import ConfigError
from minionerec.pipeline import run
from minionerec.prompts.wordings import PLAIN, RELEASED, Wording
from tests.small import config


def lists(folder):
    return (folder / "eval/sft/predictions.jsonl").read_bytes()


def test_the_released_recipe_and_its_mistake(tmp_path, caplog):
    made = config(
        tmp_path,
        prompts={"style": "alpaca", "category": "lamps", "max_tokens": 300},
        sft={"tasks": "released", "epochs": 0.2, "evaluations": 1, "history_stride": 1, "task_shares": {"sid_to_title": 0.5}},
        rl={"tasks": ["history_sid_to_sid", "title_to_sid", "history_title_to_sid"], "max_examples": 16, "checkpoints": 1},
    )
    run(made, ("data", "sid", "sft", "rl", "eval"))
    manifest = read_json(made.folder / "sft/manifest.json")
    counts = manifest["metrics"]["tasks"]
    assert list(counts) == list(RELEASED_TASKS) and counts["sid_to_title"]["examples"] == 24
    assert manifest["config"]["prompts"]["wording"] == "released" and manifest["config"]["prompts"]["eval_style"] == "same"
    clean = lists(made.folder)
    assert not [record for record in caplog.records if "eval_style" in record.message]
    mistaken = replace(made, prompts=replace(made.prompts, eval_style="released"))
    with caplog.at_level(logging.WARNING):
        run(mistaken, ("sft", "rl", "eval"))
    assert read_json(made.folder / "sft/manifest.json") == manifest  # training has not changed
    assert any("prompts.eval_style is released" in record.message for record in caplog.records)
    assert lists(made.folder) != clean
    for stage in ("rl", "eval"):
        with pytest.raises(ConfigError, match=r"sft was trained with other prompts \(style: alpaca\)"):
            run(replace(made, prompts=PromptsConfig(category="lamps", max_tokens=300)), (stage,))


def test_a_new_task_leaves_trained_models_current(tmp_path, monkeypatch):
    made = config(tmp_path, sft={"epochs": 1}, rl={"max_examples": 16, "checkpoints": 1})
    stages = ("sft", "rl", "eval")
    run(made, ("data", "sid", *stages))
    manifests = sorted(made.folder.glob("**/manifest.json"))
    before = [path.read_bytes() for path in manifests]
    monkeypatch.setitem(TASKS, "sid_to_prose", Task("sid", "description"))
    for words in (PLAIN, RELEASED):
        monkeypatch.setitem(words, "sid_to_prose", Wording(("Describe.",), ("What is{sid}?",), " {description}"))
    run(made, stages)  # a stage that is made anew has another time in its manifest
    assert [path.read_bytes() for path in manifests] == before
    monkeypatch.setitem(PLAIN, RECOMMENDING, replace(PLAIN[RECOMMENDING], questions=("What comes after{sids}?",)))
    for stage in ("rl", "eval"):
        with pytest.raises(ConfigError, match=r"sft was trained with other prompts \(words: history_sid_to_sid\)"):
            run(made, (stage,))
