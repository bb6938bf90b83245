"""The stage `mixture` and what reads it, on a run whose model nobody trained."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from minionerec.artifacts import MANIFEST, Manifest, read_json
from minionerec.artifacts.manifest import _check_file, changed_input
from minionerec.baselines.train import train_baseline
from minionerec.cli import main
from minionerec.config import BaselineConfig, Config, EvalConfig, MixtureConfig, SidConfig
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.evaluate import evaluate
from minionerec.eval.listed import why_unusable
from minionerec.eval.predictions import read_predictions
from minionerec.pipeline import run, summary
from minionerec.recommend.cache import MODEL, Mixture, MixtureWeights
from minionerec.recommend.recommender import Recommender
from minionerec.report.evaluated import read_evaluated, why_outdated
from minionerec.report.runs import read_run
from minionerec.rl.train import rl_recipe
from minionerec.sft.train import sft_recipe
from minionerec.training.early import check_components
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.fit_mixture import ODDS
from tests.recommend.conftest import make, write_run  # noqa: F401 (a fixture)
from tests.small import reseal

COMPONENTS = ["popularity", "markov", "text"]


def config_of(folder, **mixture):
    return Config(
        out=str(folder),
        sid=SidConfig(encoder="tfidf"),
        eval=EvalConfig(num_beams=14, batch_size=5, normalise_over="catalog", resamples=40, oracle_examples=4),
        mixture=MixtureConfig(**{"components": list(COMPONENTS), **mixture}),
    )


def untrained_run(folder, made, **splits):
    """A run with data, SIDs and a model."""
    recommender = made(normalise_over="catalog", num_beams=14)
    dataset = replace(recommender.prompts.dataset, **splits)
    recommender.prompts = replace(recommender.prompts, config=Config().resolved_prompts, dataset=dataset)
    write_run(folder, recommender)
    shutil.rmtree(folder / "eval")
    return folder


@pytest.fixture(scope="module")
def evaluated(make, tmp_path_factory):  # noqa: F811
    """A run with a mixture that was fitted and evaluated."""
    folder = untrained_run(tmp_path_factory.mktemp("mixture"), make)
    run(config_of(folder), ("eval",))
    return folder


@pytest.fixture
def copied(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run")
    return tmp_path / "run"


def test_the_evaluation_fits_the_mixture_and_has_a_row_with_and_one_without_it(evaluated, capsys):
    manifest = Manifest.load(evaluated / "mixture/sft")
    metrics = manifest.metrics
    assert {*manifest.inputs} == {"data", "sid", "sft"} and {*manifest.files} == {"weights.json", "vectors.safetensors"}
    assert sum(metrics[name] for name in (MODEL, *COMPONENTS)) == pytest.approx(1)
    assert metrics["log-likelihood"] > metrics["of the model alone"] and metrics["examples"] == 12
    alone, mixed = (read_json(evaluated / "eval" / name / "metrics.json") for name in ("sft", "sft-mixture"))
    assert alone["sid"] != mixed["sid"] and mixed["search"] is not None
    assert Manifest.load(evaluated / "eval/sft-mixture").inputs["mixture/sft"] == manifest.digest
    run(config_of(evaluated), ("eval",))
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "up to date" in line]
    assert lines[0] == "mixture/sft" and lines[-2:] == ["eval/sft", "eval/sft-mixture"]


def test_the_loaded_recommender_answers_as_it_was_evaluated(evaluated):
    mixed, alone = Recommender.load(evaluated), Recommender.load(evaluated, mixture=False)
    assert mixed.digests == {**alone.digests, "mixture/sft": Manifest.load(evaluated / "mixture/sft").digest}
    assert [*mixed.mixture.components] == COMPONENTS and alone.mixture is None
    for name, recommender in (("sft-mixture", mixed), ("sft", alone)):
        predictions = list(read_predictions(evaluated / "eval" / name / "predictions.jsonl"))
        lists = recommender.recommend([prediction.history_ids for prediction in predictions], k=None)
        for prediction, ours in zip(predictions, lists, strict=True):
            assert [item.index for item in ours.items] == prediction.items
            np.testing.assert_allclose(list(dict.fromkeys(item.score for item in ours.items)), prediction.scores, atol=1e-5)


def test_the_command_says_what_is_mixed_in(evaluated, capsys):
    asked = ["recommend", "--run", str(evaluated), "--history", "i0,i5,i7", "--k", "3"]
    assert main([*asked, "--explain"]) == 0
    printed = capsys.readouterr().out
    assert "mixed with popularity, markov, text; --no-mixture" in printed and "Where the probability" in printed
    assert main([*asked, "--explain", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [*answer["shares"][0]] == [MODEL, *COMPONENTS] and len(answer["shares"]) == 3
    assert main([*asked, "--explain", "--json", "--no-mixture"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (
        "shares" not in alone and alone["recommendation"]["items"][0]["score"] != answer["recommendation"]["items"][0]["score"]
    )


def test_an_export_is_never_silently_without_it(evaluated, tmp_path, capsys):
    assert main(["export", "--run", str(evaluated), "--to", str(tmp_path / "out")]) == 2
    assert "An export cannot hold what is counted" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["export", "--run", str(evaluated), "--to", str(tmp_path / "out"), "--no-mixture"]) == 0
    exported = Recommender.load(tmp_path / "out")
    assert exported.recommend([["i0", "i5"]]) == Recommender.load(evaluated, mixture=False).recommend([["i0", "i5"]])
    with pytest.raises(ConfigError, match="an exported folder holds a model alone"):
        Recommender.load(tmp_path / "out", mixture=True)


@pytest.mark.parametrize("other", ["data", "sid", "sft"])
def test_weights_of_another_model_or_other_data_are_refused(copied, other):
    manifest = Manifest.load(copied / "mixture/sft")
    reseal(copied / "mixture/sft", inputs={**manifest.inputs, other: "0" * 64}, key="another")
    with pytest.raises(ArtifactError, match=f"was made from another {other} than the one in this run.*minionerec mixture"):
        Recommender.load(copied)
    run(config_of(copied), ("mixture",))
    assert Recommender.load(copied).mixture is not None


def test_damaged_weights_are_refused(copied):
    path = copied / "mixture/sft/weights.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    with pytest.raises(ArtifactError, match=r"weights.json: .*other SHA-256"):
        Recommender.load(copied)


def test_other_settings_fit_it_again(copied):
    before = Manifest.load(copied / "mixture/sft")
    run(config_of(copied, per_bucket=False, valid_examples=7, components=["markov"]), ("mixture",))
    after = Manifest.load(copied / "mixture/sft")
    assert after.key != before.key and after.metrics["examples"] <= 7 and {*after.files} == {"weights.json"}
    weights = np.array(read_json(copied / "mixture/sft/weights.json")["weights"])
    assert (weights == weights[0]).all()


def test_lists_choose_the_odds_of_the_model(copied):
    likeliest = np.array(read_json(copied / "mixture/sft/weights.json")["weights"])
    config = config_of(copied, choose_by="NDCG@10", ranked_examples=9)
    run(config, ("mixture",))
    manifest = Manifest.load(copied / "mixture/sft")
    tried = {float(times): value for times, value in read_json(copied / "mixture/sft/odds.json")["NDCG@10"].items()}
    best = max(tried, key=lambda times: (tried[times], times == 1, times))
    assert tuple(tried) == ODDS and manifest.metrics["odds"] == best and manifest.metrics["NDCG@10"] == tried[best]
    assert f"odds {best:.4g}, NDCG@10 {tried[best]:.4g}" in summary(manifest)
    weights = np.array(read_json(copied / "mixture/sft/weights.json")["weights"])
    odds, before = (values[:, 0] / values[:, 1:].sum(axis=1) for values in (weights, likeliest))
    np.testing.assert_allclose(odds, before * best, rtol=1e-12)
    np.testing.assert_allclose(weights[:, 1] * likeliest[:, 2], weights[:, 2] * likeliest[:, 1], rtol=1e-12)  # among themselves
    recommender = Recommender.load(copied)  # each figure is that of the evaluation's own search with these weights
    fitted = MixtureWeights(recommender.mixture.weights.names, likeliest, recommender.mixture.weights.made_from)
    for times in (1.0, 0.05):
        recommender.mix(Mixture(recommender.mixture.components, recommender.mixture.buckets, fitted).with_odds(times))
        assert RankingEvaluator(recommender, config.eval, 9, "NDCG@10")()["NDCG@10"] == tried[times]
    run(config_of(copied), ("mixture",))
    assert not (copied / "mixture/sft/odds.json").exists()
    np.testing.assert_array_equal(np.array(read_json(copied / "mixture/sft/weights.json")["weights"]), likeliest)


def test_off_it_leaves_nothing(copied):
    shutil.rmtree(copied / "mixture")
    for name in ("sft", "sft-mixture"):
        shutil.rmtree(copied / "eval" / name)
    config = config_of(copied, components=[])
    run(config, ("eval",))
    assert not (copied / "mixture").exists() and not (copied / "eval/sft-mixture").exists()
    assert Recommender.load(copied).mixture is None
    with pytest.raises(ConfigError, match=r"mixture.components is empty"):
        run(config, ("mixture",))
    with pytest.raises(ArtifactError, match=r"no finished artefact here.*minionerec mixture"):
        Recommender.load(copied, mixture=True)


def test_without_valid_examples_it_is_refused_before_anything_is_trained(make, tmp_path):  # noqa: F811
    folder = untrained_run(tmp_path / "run", make, valid=make().prompts.dataset.valid.clear())
    shutil.rmtree(folder / "sft")
    with pytest.raises(ConfigError, match="valid split is empty, and the weights of a mixture are fitted to it"):
        run(config_of(folder), ("sft", "eval"))
    assert not (folder / "sft").exists()


def test_what_cannot_go_together_is_refused_by_the_configuration():
    with pytest.raises(ConfigError, match=r"but eval.normalise_over is vocabulary"):
        check_components(Config(mixture=MixtureConfig(components=["markov"])))  # a run.yaml may hold this: see recording
    short = config_of("x", choose_by="NDCG@10")
    short.eval.num_beams = 9
    with pytest.raises(ConfigError, match=r"mixture.choose_by is NDCG@10, but lists end after 9 SIDs .* or more beams"):
        check_components(short)
    with pytest.raises(ConfigError, match=r"mixture.components mixes"):
        Config(mixture=MixtureConfig(components=["markov"], validation=True))
    with pytest.raises(ConfigError, match=r"mixture.validation is true, but mixture.components is empty"):
        MixtureConfig(validation=True)
    with pytest.raises(ConfigError, match=r"mixture.pseudo_counts is 3, but mixture.per_bucket is false"):
        MixtureConfig(components=["markov"], per_bucket=False, pseudo_counts=3)
    with pytest.raises(ConfigError, match=r"mixture.ranked_examples is 9, but mixture.choose_by is likelihood.*examples 1024"):
        MixtureConfig(components=["markov"], ranked_examples=9)
    assert "mixture" not in Config().decoding()
    decoding = config_of("x", validation=True).decoding()
    assert decoding["mixture"]["components"] == COMPONENTS and "validation" not in decoding["mixture"]
    for unread in ({"valid_examples": 7}, {"choose_by": "NDCG@10", "ranked_examples": 7}):  # no training reads these
        assert config_of("x", validation=True, **unread).decoding() == decoding


def test_validation_with_the_mixture_is_cross_fitted(make, tmp_path):  # noqa: F811
    """Each half of the examples is ranked with weights that were fitted to the other half."""
    config = config_of(tmp_path / "run", components=["popularity", "markov"], validation=True)
    recommender = make(**asdict(config.eval))
    evaluator = RankingEvaluator(recommender, config.eval, None, "NDCG@10", config)
    alone = RankingEvaluator(recommender, config.eval, None, "NDCG@10")()
    mixed = evaluator()
    assert mixed == evaluator() and mixed != alone and recommender.mixture is None
    for size in (1, 3):  # the halves do not depend on how examples are computed together
        other = replace(config, eval=replace(config.eval, batch_size=size))
        assert RankingEvaluator(recommender, other.eval, None, "NDCG@10", other)() == pytest.approx(mixed)
    cross = evaluator._mixed
    column = cross.model_column(slice(None))
    for half, mixture in enumerate(cross.fit(column)):
        changed = np.where(cross.halves == half, 1e-6, column)  # what is measured does not decide its own weights
        assert (cross.fit(changed)[half].weights.values == mixture.weights.values).all()
        assert not (cross.fit(changed)[1 - half].weights.values == cross.fit(column)[1 - half].weights.values).all()


WITH_BASELINE = ["popularity", "markov", "sequential"]


def train(folder, **options):
    """The run's SASRec."""
    settings = BaselineConfig(**{"model": "sasrec", "max_history": 4, "hidden_size": 8, "epochs": 1, **options})
    return train_baseline(Config(out=str(folder), baseline=settings, replace=True))[0]


def test_a_model_without_the_mixture_that_another_stage_has_says_so(copied, caplog):
    (copied / "mixture/sft").rename(copied / "mixture/rl")
    assert Recommender.load(copied, mixture=False).mixture is None and not caplog.text
    assert Recommender.load(copied).mixture is None
    assert "fitted to the model of stage rl; that of stage sft has none, so it ranks alone. Fit one:" in caplog.text


@pytest.fixture(scope="module")
def with_baseline(evaluated, tmp_path_factory):
    """The run with a trained baseline in the mixture that was fitted and evaluated."""
    folder = shutil.copytree(evaluated, tmp_path_factory.mktemp("sequential") / "run")
    train(folder)
    run(config_of(folder, components=WITH_BASELINE, sequential="sasrec"), ("eval",))
    return folder


@pytest.fixture
def copied_with_baseline(with_baseline, tmp_path):
    return shutil.copytree(with_baseline, tmp_path / "run")


def test_a_trained_baseline_is_mixed_in_wherever_the_run_is_asked(with_baseline, capsys):
    digest = Manifest.load(with_baseline / "baselines/sasrec").digest
    mixture, evaluation = (Manifest.load(with_baseline / name) for name in ("mixture/sft", "eval/sft-mixture"))
    assert mixture.inputs["baselines/sasrec"] == evaluation.inputs["baselines/sasrec"] == digest
    assert sum(mixture.metrics[name] for name in (MODEL, *WITH_BASELINE)) == pytest.approx(1)
    assert read_json(with_baseline / "mixture/sft/weights.json")["made_from"]["component sequential"]["digest"] == digest
    recommender = Recommender.load(with_baseline)
    assert [*recommender.mixture.components] == WITH_BASELINE
    predictions = list(read_predictions(with_baseline / "eval/sft-mixture/predictions.jsonl"))
    lists = recommender.recommend([prediction.history_ids for prediction in predictions], k=None)
    for prediction, ours in zip(predictions, lists, strict=True):
        assert [item.index for item in ours.items] == prediction.items
    asked = ["recommend", "--run", str(with_baseline), "--history", "i0,i5,i7,i7,i2,i9", "--k", "3", "--explain", "--json"]
    assert main(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [*answer["shares"][0]] == [MODEL, *WITH_BASELINE] and min(shares["sequential"] for shares in answer["shares"]) > 0
    run(config_of(with_baseline, components=WITH_BASELINE, sequential="sasrec"), ("eval",))
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines() if "up to date" in line} >= {
        "mixture/sft",
        "eval/sft-mixture",
    }


def test_a_recommender_checks_each_file_once(with_baseline, monkeypatch):
    checked = Counter()

    def count(path, size, sha256):
        checked[path] += 1
        _check_file(path, size, sha256)

    monkeypatch.setattr("minionerec.artifacts.manifest._check_file", count)
    assert Recommender.load(with_baseline).mixture is not None
    assert {*checked.values()} == {1}
    assert {with_baseline / name for name in ("data/train.parquet", "baselines/sasrec/model.safetensors")} <= checked.keys()


def test_a_baseline_that_was_trained_again_makes_mixture_and_evaluation_stale(copied_with_baseline):
    folder = copied_with_baseline
    train(folder, epochs=2)
    for ask in (
        lambda: Recommender.load(folder),
        lambda: evaluate(config_of(folder, components=WITH_BASELINE, sequential="sasrec"), "sft-mixture"),
    ):
        with pytest.raises(ArtifactError, match=r"fitted with another baselines/sasrec than the run has.*minionerec mixture"):
            ask()
    assert changed_input(folder, Manifest.load(folder / "eval/sft-mixture")) == "baselines/sasrec"
    run(config_of(folder, components=WITH_BASELINE, sequential="sasrec"), ("mixture",))
    assert Recommender.load(folder).mixture is not None
    shutil.rmtree(folder / "baselines")
    with pytest.raises(ArtifactError, match=r"sasrec: no finished artefact here.*minionerec baseline --baseline.model sasrec"):
        Recommender.load(folder)
    shutil.rmtree(folder / "mixture")
    with pytest.raises(ArtifactError, match=r"mixture.sequential needs this baseline. First run.*--baseline.model sasrec"):
        run(config_of(folder, components=WITH_BASELINE, sequential="sasrec", valid_examples=5), ("mixture",))


def test_validations_mix_the_baseline_in_and_their_trainings_hold_its_digest(with_baseline):
    config = config_of(with_baseline, components=WITH_BASELINE, sequential="sasrec", validation=True)
    recommender = Recommender.load(with_baseline, mixture=False)
    recommender.config = config.eval
    mixed = RankingEvaluator(recommender, config.eval, None, "NDCG@10", config)()
    assert mixed != RankingEvaluator(recommender, config.eval, None, "NDCG@10")()
    digest = {"baselines/sasrec": Manifest.load(with_baseline / "baselines/sasrec").digest}
    by_lists = replace(config, sft=replace(config.sft, best_metric="NDCG@10"))
    assert digest.items() <= sft_recipe(by_lists).inputs.items() and digest.items() <= rl_recipe(config).inputs.items()
    assert not digest.keys() & sft_recipe(config).inputs.keys()  # validated by its loss
    assert "sequential" not in config.decoding()["mixture"]  # models of before stay current


def test_the_floor_weighs_a_trained_baseline_too(copied_with_baseline):
    folder = copied_with_baseline
    floor = BaselineConfig(model="mixture", components=["markov", "sequential"], sequential="sasrec")
    config = replace(config_of(folder), baseline=floor)
    run(config, ("baseline",))
    manifest = Manifest.load(folder / "baselines/mixture")
    assert manifest.inputs["baselines/sasrec"] == Manifest.load(folder / "baselines/sasrec").digest
    assert read_json(folder / "baselines/mixture/weights.json")["components"] == ["markov", "sequential"]
    [row] = read_run(folder, only=["mixture"])
    assert row.label == read_evaluated(folder / "eval/mixture").label == "Mixture of counts (and text) with SASRec"
    with pytest.raises(ConfigError, match=r"sasrec does not take it.*--baseline.components null --baseline.sequential null"):
        train(folder, components=["sequential"], sequential="caser")  # before it is asked for caser
    trained = Manifest.load(folder / "baselines/sasrec")
    assert row.has_seed and row.parameters == trained.metrics["parameters"]
    assert row.seconds == manifest.seconds + trained.seconds
    assert train_baseline(config)[1] is False
    assert why_unusable(folder, "mixture") is None
    train(folder, epochs=2)
    evaluation = Manifest.load(folder / "eval/mixture")
    assert "made from lists with another baselines/sasrec than the run has; first" in why_outdated(
        folder, "mixture", evaluation
    )
    assert "were made with another baselines/sasrec than the run has now. Make them again" in why_unusable(folder, "mixture")
    with pytest.raises(ConfigError, match=r"(?s)baselines/mixture is finished, but was made from something else.*sasrec"):
        train_baseline(config)
    assert train_baseline(replace(config, replace=True))[1]
    shutil.rmtree(folder / "baselines/sasrec")
    with pytest.raises(ArtifactError, match=r"baseline.sequential needs this baseline. First run"):
        run(config, ("baseline",))


def test_a_finished_run_has_no_leftovers(evaluated):
    assert (evaluated / "mixture/sft" / MANIFEST).is_file() and not [*evaluated.rglob("*.partial"), *evaluated.rglob("*.lock")]
