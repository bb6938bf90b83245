import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minionerec.artifacts import Manifest, read_json
from minionerec.config import Config, RlConfig
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.model import checkpoint
from minionerec.pipeline import run
from minionerec.rl.train import check_sft, rl_recipe, warn_if_normalised_otherwise
from minionerec.sft.train import sft_recipe
from minionerec.training.evaluator import MONITORED
from minionerec.training.fit_mixture import fit_mixture
from tests.launch import forked
from tests.small import config, reseal


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    options = {
        "rollouts": "stochastic",
        "dynamic_sampling": "refill",
        "patience": 9,
        "sft_weight": 0.1,
        "sync_reference": 4,
    }
    made = config(tmp_path_factory.mktemp("rl"), sft={"epochs": 4}, rl=options)
    run(made, ("data", "sid", "sft"))
    made.replace = True  # the tests change settings and train again
    return made


def test_zero2_on_two_processes_takes_the_single_process_steps(prepared):
    logs, validated, metrics = [], [], {}
    for processes in (1, 2):
        if processes == 1:
            run(prepared, ("rl",))
        else:
            shutil.rmtree(prepared.folder / "rl")
            path = str(prepared.folder.parent / "small.yaml")
            forked(2, "rl/train.py", "--config", path, zero2="rl/zero2.yaml")
        made = read_json(prepared.folder / "rl/manifest.json")["metrics"]
        assert made["devices"] == processes
        metrics = metrics or made
        rows = [json.loads(line) for line in (prepared.folder / "rl/log.jsonl").read_text().splitlines()]
        logs.append([row for row in rows if "reward" in row])
        validated.append([row for row in rows if "valid_NDCG@10" in row])
        assert rows[-1]["best_step"] == made["best_step"]
    assert len(logs[0]) == len(logs[1]) == 8
    assert sum(row["HR@4"] for row in logs[0]) > 0
    # The policy is the same before the first step: so are the figures on valid, to the last bit, however many share the work.
    assert [row["step"] for row in validated[0]] == [0, 2, 4, 6, 8]
    lists_hold = {name for name in MONITORED if int(name.partition("@")[2]) <= prepared.eval.num_beams}
    assert validated[0][0] == validated[1][0] and lists_hold == {name[6:] for name in validated[0][0] if "@" in name}
    best = max(validated[0], key=lambda row: row["valid_NDCG@10"])  # the first of equals
    assert (metrics["best_step"], metrics["best valid NDCG@10"]) == (best["step"], best["valid_NDCG@10"])
    # The entropy's mean is over kept groups, then over micro-batches, and these are other ones.
    for name in ("reward", "HR@4", "kl", "entropy/level_1", "sft_loss", "groups_with_signal", "prompts_tried"):
        assert logs[1][0][name] == pytest.approx(logs[0][0][name], rel=1e-4, abs=1e-5)
    # Adam divides rounding noise by its own size, so later steps drift apart a little and near ties may swap places.
    for alone, together in zip(*logs, strict=True):
        assert together["entropy"] == pytest.approx(alone["entropy"], rel=2e-2)


def test_what_computes_in_a_short_format_is_in_the_key(prepared):
    """And absent from it otherwise, so that a model of float32 rollouts and validations stays current."""
    sdpo = {"objective": "sdpo", "rollouts": "uniform", "add_target": True, "rewards": {"rule": 1.0}}
    for rl, dtype, rollouts, validation in (
        ({}, "float32", None, None),
        ({"bf16": True}, "float32", {"rollouts": "bfloat16"}, None),
        ({}, "bfloat16", None, "bfloat16"),
        ({"bf16": True, "evaluations": 0}, "bfloat16", {"rollouts": "bfloat16"}, None),
        ({"bf16": True, **sdpo}, "float32", None, None),  # asks no policy for its groups
    ):
        recipe = rl_recipe(replace(prepared, rl=RlConfig(**rl), eval=replace(prepared.eval, dtype=dtype)))
        assert recipe.config.get("precision") == rollouts
        assert recipe.config.get("validation", {}).get("dtype") == validation


def test_the_key_has_the_brake_as_it_is(prepared):
    """A model from scratch of before there was a default stays current; a pretrained one is asked about."""
    before = rl_recipe(replace(prepared, rl=replace(prepared.rl, kl_brake=None)))
    now = rl_recipe(prepared)
    assert (before.key, now.config["rl"]["kl_brake"]) == (now.key, None)
    sft = Manifest.load(prepared.folder / "sft")
    try:
        reseal(prepared.folder / "sft", config={**sft.config, "model": {**sft.config["model"], "init": "from_pretrained"}})
        braked = rl_recipe(prepared)
    finally:
        sft.save(prepared.folder / "sft")
    assert braked.config["rl"]["kl_brake"] == braked.key_fields["rl"]["kl_brake"] == 0.1


def test_a_model_that_never_improves_stays_the_sft_model(prepared, caplog):
    """Steps of almost nothing change no list: the SFT model, validated before the first, is not beaten by equals."""
    was = prepared.rl.learning_rate, prepared.rl.patience
    prepared.rl.learning_rate, prepared.rl.patience = 1e-12, 1
    try:
        run(prepared, ("rl",))
    finally:
        prepared.rl.learning_rate, prepared.rl.patience = was
    metrics = read_json(prepared.folder / "rl/manifest.json")["metrics"]
    assert metrics["best_step"] == 0 and metrics["steps"] == 2  # the first validation in vain is the last
    assert "No step of rl has a higher NDCG@10 on valid than the SFT model" in caplog.text
    weights = [(prepared.folder / stage / "model/model.safetensors").read_bytes() for stage in ("sft", "rl")]
    assert weights[0] == weights[1]


def test_another_space_than_sft_was_trained_in(prepared, caplog):
    sft = Manifest.load(prepared.folder / "sft")
    warn_if_normalised_otherwise(sft, RlConfig(normalise_over="vocabulary"))
    assert not caplog.text
    warn_if_normalised_otherwise(sft, RlConfig(normalise_over="catalog"))
    assert "trained with sft.normalise_over vocabulary, but rl.normalise_over is catalog" in caplog.text
    assert "Set rl.normalise_over vocabulary unless you mean it." in caplog.text
    caplog.clear()
    warn_if_normalised_otherwise(sft, RlConfig(objective="exact", normalise_over="catalog", rewards={"rule": 1.0}))
    assert "Train SFT with sft.normalise_over catalog unless you mean it." in caplog.text  # `exact` takes nothing else


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts_per_step": 10, "micro_batch_prompts": 4}, "rl.prompts_per_step 10 does not split into 1 device"),
        ({"report_to": ["abacus"]}, "rl.report_to names abacus"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(prepared, monkeypatch, fields, message):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(checkpoint, "load", loaded)
    kept = prepared.folder / "rl.partial" / "checkpoints" / "kept"
    kept.mkdir(parents=True)
    for name, value in fields.items():
        monkeypatch.setattr(prepared.rl, name, value)
    with pytest.raises(ConfigError, match=message):
        run(prepared, ("rl",))
    assert kept.is_dir()  # nor is what an interrupted run has left touched
    shutil.rmtree(prepared.folder / "rl.partial")


def test_rows_that_sft_has_seen_are_no_holdout(prepared):
    prepared.rl.holdout = "last"
    try:
        with pytest.raises(ConfigError, match=r"rl\.holdout is last with rl\.holdout_share 0\.2, but .* was trained with none"):
            run(prepared, ("rl",))
        assert sft_recipe(prepared).key_fields["holdout"] == {"rows": "last", "share": 0.2}
    finally:
        prepared.rl.holdout = "none"
    assert "holdout" not in sft_recipe(prepared).key_fields  # the key of a model without is what it was


def test_a_model_that_was_trained_on_valid_is_not_measured_there(prepared):
    shutil.copytree(prepared.folder / "sft", prepared.folder / "rl", dirs_exist_ok=True)
    sft = Manifest.load(prepared.folder / "sft")
    reseal(prepared.folder / "rl", stage="rl", config={**sft.config, "rl": {"prompts": "valid"}})
    prepared.eval.split, prepared.eval.normalise_over, prepared.mixture.components = "valid", "catalog", ["popularity"]
    try:
        with pytest.raises(ConfigError, match=r"eval\.split is valid, but the model of rl was trained on the valid split"):
            evaluate(prepared, "rl")
        with pytest.raises(ConfigError, match="The weights of a mixture are fitted on the valid split, but the model of rl"):
            fit_mixture(prepared, "rl")
    finally:
        prepared.eval.split, prepared.eval.normalise_over, prepared.mixture.components = "test", "vocabulary", []
        shutil.rmtree(prepared.folder / "rl")


def test_a_reward_whose_baseline_is_missing(prepared):
    prepared.rl.rewards = {"collaborative": 1.0}
    with pytest.raises(ArtifactError, match=r"baselines/sasrec: no finished artefact.*minionerec baseline"):
        run(prepared, ("rl",))
    prepared.rl.rewards = {"ranking": 1.0}


def test_a_group_larger_than_the_catalog(prepared):
    prepared.rl.num_generations = 64
    with pytest.raises(ConfigError, match="num_generations is 64, but the catalog has only 48 SIDs"):
        run(prepared, ("rl",))
    prepared.rl.num_generations = 4


def test_a_model_with_a_second_distribution_is_refused_whatever_the_command_says_of_it():
    manifest = SimpleNamespace(config={"model": {"text_output": True}})
    with pytest.raises(ConfigError, match=r"model.text_output is true"):
        check_sft(manifest, Config())
