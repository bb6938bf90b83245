"""Runs whose models have item texts: trained, validated by ranking, alone or with a mixture, evaluated and asked."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from minionerec import Recommender
from minionerec.config import MixtureConfig
from minionerec.errors import ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.pipeline import run
from minionerec.recommend.export import export
from minionerec.rl import plan as rl_plan
from minionerec.sft import plan as sft_plan
from minionerec.training.evaluator import RankingEvaluator
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
    run(made, ("data", "sid"))
    [planned, _] = sft_plan.plans(made, 2)
    run(made, ("sft",))
    metrics = json.loads((made.folder / "sft/manifest.json").read_text())["metrics"]
    assert metrics["parameters"] == planned.shape.parameters and metrics["steps"] <= planned.work.steps
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
    with pytest.raises(ConfigError, match=r"model\.text_output is true.*RL trains the former only"):
        rl_plan.plans(made, 2)  # nor is what is refused planned
    with pytest.raises(ConfigError, match=r"--for hf: this model reads its items' text vectors.*Serve the run"):
        export(made.folder, tmp_path / "exported")


def test_texts_at_the_input_in_sft_and_rl_which_validate_with_a_mixture(tmp_path):
    """RL trains the layer that reads the vectors; both choose their model by lists that are ranked with the mixture."""
    made = config(
        tmp_path,
        model={"text_input": True},
        mixture={"components": ["popularity", "markov", "text"], "validation": True},
        sft={
            "tasks": ["history_sid_to_sid"],
            "normalise_over": "catalog",
            "best_metric": "NDCG@10",
            "valid_examples": 20,
            "epochs": 2,
            "evaluations": 2,
        },
        rl={"normalise_over": "catalog", "max_examples": 16, "evaluations": 2, "valid_examples": 20},
        eval={"normalise_over": "catalog", "oracle_examples": 0},
    )
    run(made, ("data", "sid", "sft", "rl"))
    recommender = Recommender.load(made.folder, "sft", mixture=False)
    alone = RankingEvaluator(recommender, made.eval, 20, "NDCG@10")()
    with_mixture = RankingEvaluator(recommender, made.eval, 20, "NDCG@10", made)()
    assert alone["NDCG@10"] != with_mixture["NDCG@10"]
    logs = {}
    for stage in ("sft", "rl"):
        lines = (made.folder / stage / "log.jsonl").read_text().splitlines()
        logs[stage] = [json.loads(line) for line in lines]
        manifest = json.loads((made.folder / stage / "manifest.json").read_text())["config"]
        assert manifest["validation"]["mixture"]["components"] == ["popularity", "markov", "text"]
        assert manifest["component_texts"]["encoder"] == "tfidf"
    best = max(line["eval_NDCG@10"] for line in logs["sft"] if "eval_NDCG@10" in line)
    assert best == pytest.approx(with_mixture["NDCG@10"])
    validated = [line for line in logs["rl"] if "valid_NDCG@10" in line]
    assert validated[0]["step"] == 0 and validated[0]["valid_NDCG@10"] == pytest.approx(with_mixture["NDCG@10"])
    assert len(validated) == 3
    rewarded = [line for line in logs["rl"] if "kl" in line]
    assert rewarded and abs(rewarded[0]["kl"]) < 1e-5  # the policy is the reference model, texts and all
    before, after = (load_file(made.folder / stage / "model/model.safetensors") for stage in ("sft", "rl"))
    changed = {name for name, value in before.items() if not value.equal(after[name])}
    last = max(validated, key=lambda line: line["valid_NDCG@10"])  # the first of equals is kept
    assert ("model.text_in.weight" in changed) == (last["step"] > 0) and "model.texts.vectors" not in changed
    # The same validations without the mixture are another choice, and another recipe.
    other = replace(made, replace=False, mixture=MixtureConfig(components=["popularity", "markov", "text"]))
    for stage in ("sft", "rl"):
        with pytest.raises(ConfigError, match="is finished, but was made from something else"):
            run(other, (stage,))
    run(replace(made, replace=False, mixture=replace(made.mixture, valid_examples=5)), ("sft", "rl"))  # which they do not read
