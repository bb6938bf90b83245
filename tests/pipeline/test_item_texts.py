"""A run whose model has item texts: trained, validated by ranking, evaluated and asked; RL and exports refuse it."""

import json

import pytest

from minionerec import Recommender
from minionerec.errors import ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.pipeline import run
from minionerec.recommend.export import export
from minionerec.tree.leaf_component import leaf_model
from tests.small import config


def test_a_run_with_item_texts(tmp_path):
    made = config(
        tmp_path,
        model={"text_input": True, "text_output": True},
        sft={
            "normalise_over": "catalog",
            "best_metric": "NDCG@10",
            "valid_examples": 20,
            "epochs": 3,
            "evaluations": 2,
            "smoothing": 0.1,
        },
        eval={"normalise_over": "catalog", "oracle_examples": 0},
    )
    run(made, ("data", "sid", "sft"))
    logged = [json.loads(line) for line in (made.folder / "sft/log.jsonl").read_text().splitlines()]
    assert any("eval_NDCG@10" in line for line in logged) or any("eval_loss" in line for line in logged)
    recommender = Recommender.load(made.folder)
    model = leaf_model(recommender.model)
    assert model is not None and model.config.text_input
    evaluate(made, "sft")
    [answer] = recommender.recommend([["i3", "i4"]], k=48, widest=64)
    assert len(answer.items) == 48 and answer.exact
    assert sum(2.718281828**item.score for item in answer.items) == pytest.approx(1, abs=1e-3)  # the whole catalog
    assert recommender.explain(["i3", "i4"], k=3)
    with pytest.raises(ConfigError, match=r"model\.text_output is true.*RL trains the former only"):
        run(made, ("rl",))
    with pytest.raises(ConfigError, match=r"--for hf: this model reads its items' text vectors.*Serve the run"):
        export(made.folder, tmp_path / "exported")
