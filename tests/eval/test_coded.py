"""Baselines that write SIDs, asked by the evaluation, against scores of the whole catalog."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minionerec.artifacts import Manifest, Recipe
from minionerec.baselines.coded.lazy import LazyDecoder
from minionerec.baselines.coded.liger import LIGER
from minionerec.baselines.coded.tiger import TIGER
from minionerec.baselines.train import train_baseline
from minionerec.config import BaselineConfig, EvalConfig
from minionerec.errors import ArtifactError, ConfigError, ConstraintError
from minionerec.eval import coded
from minionerec.eval.coded import CodedDecoder
from minionerec.eval.evaluate import evaluate
from minionerec.eval.listed import left_out, why_measured_otherwise
from minionerec.eval.metrics import item_ranks
from minionerec.eval.predictions import read_predictions
from minionerec.eval.search_error import read_traces
from minionerec.pipeline import run
from minionerec.report.evaluated import why_outdated
from minionerec.training.ranking import TIES
from tests import small
from tests.baselines.test_coded import TINY_LAZY, TINY_TIGER, TRAINED, spread
from tests.baselines.test_liger import TINY as TINY_LIGER
from tests.eval.samples import DATASET, INDICES
from tests.small import reseal

HISTORIES = DATASET.test["history"].to_list()
LONGEST = max(map(len, HISTORIES))
COLD = [3, 8]
TEXTS = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
TEXTS[7] = TEXTS[6]


def model_of(name, kind="shared", **sizes):
    codes = INDICES[kind].codes
    torch.manual_seed(0)
    if name == "liger":
        trained = np.setdiff1d(np.arange(20), COLD)
        return spread(LIGER(codes, LONGEST, replace(TINY_LIGER, **sizes), 50, TEXTS, trained))
    return spread(
        {"tiger": TIGER, "lazy": LazyDecoder}[name](codes, LONGEST, {"tiger": TINY_TIGER, "lazy": TINY_LAZY}[name], 50)
    )


def decoder(model, kind="shared", **fields):
    return CodedDecoder(model, EvalConfig(**{"num_beams": 5, "batch_size": 5, **fields}), DATASET, INDICES[kind])


@torch.no_grad()
def sid_scores(model, over):
    """(rows, SIDs) scores of the whole catalog, from prefix scores, which other tests hold to plain forwards."""
    of_catalog = decoder(model)
    return model.prefix_scores(of_catalog._batch(of_catalog._rows), over)[-1].numpy()


ROWS = range(len(DATASET.test))


@pytest.mark.parametrize("exclude", [False, True], ids=["kept", "left out"])
@pytest.mark.parametrize("over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("name", ["tiger", "lazy"])
def test_lists_are_the_best_of_the_catalog_and_say_if_that_is_proven(name, over, exclude):
    """Items of one SID are tied. A history that is left out is no part of what is searched, nor of what adds up to 1."""
    model, index = model_of(name), INDICES["shared"]
    scores, leaf_of = sid_scores(model, over), model.trie.leaf_of_item.tolist()
    narrow, wide = (
        list(decoder(model, num_beams=beams, normalise_over=over, exclude_history=exclude).predict(ROWS)) for beams in (2, 20)
    )
    assert all(one.exact for one in wide)
    assert {one.exact for one in narrow} == ({False, True} if over == "catalog" else {False})  # much of it outside the catalog
    for row, (short, whole) in enumerate(zip(narrow, wide, strict=True)):
        left = [item for item in range(20) if not (exclude and item in HISTORIES[row])]
        assert sorted(whole.items) == left and whole.history == HISTORIES[row]
        assert whole.sids == [
            index.codes[item].tolist() for item in dict.fromkeys(whole.items) if _first(item, whole.items, leaf_of)
        ]
        if over == "vocabulary":  # each step's probability is what it was
            expected = sorted({leaf_of[item]: scores[row, leaf_of[item]] for item in left}.values(), reverse=True)
            np.testing.assert_allclose(whole.scores, expected, atol=2e-5)
        else:
            assert np.exp(whole.scores).sum() == pytest.approx(1, abs=1e-5)
        groups = np.split(whole.items, np.cumsum(whole.sizes or [1] * len(whole.sids))[:-1])
        assert [sorted({leaf_of[item] for item in group}) for group in groups] == [[leaf_of[group[0]]] for group in groups]
        if short.exact:
            assert short.sids == whole.sids[:2] and short.items == whole.items[: len(short.items)]
    best, ties = item_ranks(wide)
    for row, one in enumerate(wide):
        if not (exclude and one.target in one.history):
            assert ties[row] == sum(leaf_of[item] == leaf_of[one.target] for item in one.items) and np.isfinite(best[row])


def _first(item, items, leaf_of):
    return item == next(other for other in items if leaf_of[other] == leaf_of[item])


@pytest.mark.parametrize("over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("name", ["tiger", "lazy", "liger"])
def test_the_oracle_replays_their_search(name, over):
    """On exact scores; of `liger` only where its beams are the list."""
    model = model_of(name, dense_weight=0.0) if name == "liger" else model_of(name)
    scores, leaf_of = sid_scores(model, over), model.trie.leaf_of_item.tolist()
    for width in (2, 5):
        asked = decoder(model, num_beams=width, normalise_over=over)
        for prediction, trace in zip(asked.predict(ROWS), asked.trace(ROWS), strict=True):
            rank = prediction.sids.index(prediction.target_sid) if prediction.target_sid in prediction.sids else None
            own = scores[trace.row]
            assert trace.widths[str(width)] == rank and trace.rank == (own > own[leaf_of[prediction.target]]).sum()
            assert not prediction.exact or trace.overlap[str(width)] == 1


@pytest.mark.parametrize("memory", [40_000, 1 << 30])
@pytest.mark.parametrize("name", ["tiger", "lazy"])
def test_exact_scores_are_those_of_a_search_for_everything(name, memory, monkeypatch):
    model = model_of(name)
    monkeypatch.setattr(f"minionerec.baselines.coded.{name}.PASS_BYTES", memory)  # several passes, or one
    found = decoder(model, num_beams=20)
    batch = found._batch(found._rows.take(np.arange(2)))
    for over in ("vocabulary", "catalog"):
        result = model.search(batch, 20, normalise_over=over)
        expected = model.prefix_scores(batch, over)[-1]
        count = len(model.trie)
        torch.testing.assert_close(expected.gather(1, result.leaves[:, :count]), result.scores[:, :count], atol=1e-5, rtol=0)


@pytest.mark.parametrize("exclude", [False, True], ids=["kept", "left out"])
@torch.no_grad()
def test_liger_lists_what_was_found_and_cold_items_by_cosines_and_is_proven_if_the_search_is(exclude):
    model, index = model_of("liger"), INDICES["shared"]
    leaf_of = np.array(model.trie.leaf_of_item.tolist())
    asked = decoder(model, num_beams=3, exclude_history=exclude, oracle_examples=5, normalise_over="catalog")
    batch, view = asked._batch(asked._rows), model.trie.without(HISTORIES) if exclude else model.trie
    dense = model.dense_scores(batch)[:, 1:].numpy()
    likely = model.search(batch, 20, view, "catalog").leaves[:, :3].tolist()  # of a search for everything
    predictions = list(asked.predict(ROWS))
    assert asked.config.oracle_examples == 0 and {one.exact for one in predictions} == {False, True}
    for row, one in enumerate(predictions):
        left = np.array([item for item in range(20) if not (exclude and item in HISTORIES[row])])
        candidates = [item for item in left.tolist() if item in COLD or leaf_of[item] in likely[row]]
        expected = sorted(candidates, key=lambda item: (-dense[row, item], item))
        if one.exact:
            assert one.items == expected[:3]
            if one.target in candidates:
                above, level = (
                    (dense[row, candidates] > dense[row, one.target]).sum(),
                    dense[row, candidates] == dense[row, one.target],
                )
                assert (one.item_tie or [above, 1]) == [above, level.sum()] or above >= 3
        assert one.sids == [list(sid) for sid in dict.fromkeys(map(tuple, index.codes[one.items].tolist()))]


def test_short_formats_other_processes_and_numbers_that_are_none():
    for name in ("tiger", "lazy", "liger"):
        exact = list(decoder(model_of(name, "distinct"), "distinct", num_beams=20).predict(range(3)))
        rounded = decoder(model_of(name, "distinct").to(torch.bfloat16), "distinct", num_beams=20)
        for one, other in zip(exact, rounded.predict(range(3)), strict=True):
            if name != "liger":
                np.testing.assert_allclose(sorted(one.scores), sorted(other.scores), rtol=0.1, atol=0.5)
            assert len(one.items) == len(other.items)
        if name == "liger":  # 20 items, two of them with one text, whose cosines would round to fewer numbers
            dense = rounded.model.dense_scores(rounded._batch(rounded._rows))
            assert dense.dtype == torch.float32 and all(len(row.unique()) == 1 + 19 for row in dense)
    travelled = pickle.loads(pickle.dumps(decoder(model_of("tiger"))))
    assert list(travelled.predict(ROWS)) == list(decoder(model_of("tiger")).predict(ROWS))
    broken = model_of("lazy")
    broken.outputs.data.fill_(torch.nan)
    with pytest.raises(ConstraintError, match=r"are not numbers \(NaN\)"):
        list(decoder(broken).predict(ROWS))
    broken = model_of("liger")
    broken.texts[1 + COLD[0]] = torch.nan  # of an item that is in no history: the search does not see it
    broken.text_of[COLD[0]], broken.first[-1] = len(broken.first) - 1, 1 + COLD[0]
    unread = [row for row in ROWS if COLD[0] not in HISTORIES[row]]
    with pytest.raises(ConstraintError, match=r"are not numbers \(NaN\)"):
        list(decoder(broken).predict(unread))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a trained TIGER and LIGER, and a file of vectors."""
    folder = tmp_path_factory.mktemp("coded")
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((48, 24)).astype(np.float32))
    config = small.config(folder, sid={"vectors": str(folder / "vectors.npy")}, eval={"resamples": 40, "oracle_examples": 3})
    run(config, ("data", "sid"))
    for name in ("tiger", "liger"):
        train_baseline(replace(config, baseline=BaselineConfig(model=name, epochs=1, max_history=6, **TRAINED["tiger"])))
    return config


def test_a_run_evaluates_them_as_it_does_a_language_model(trained, caplog):
    caplog.set_level("INFO")
    manifest, fresh = evaluate(trained, "tiger")  # though the section `baseline` is of another model
    folder = trained.folder / "eval/tiger"
    predictions, traces = read_predictions(folder / "predictions.jsonl"), read_traces(folder / "oracle.jsonl")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert fresh and len(traces) == 3 and metrics["search"]["rows"] == 3 and metrics["calibration"]
    assert metrics["exact"] == np.mean([one.exact for one in predictions]) and manifest.metrics["milliseconds_per_list"] > 0
    assert {len(one.sids) for one in predictions} == {10} and not evaluate(trained, "tiger")[1]
    reseal(trained.folder / "baselines/tiger", digest="of another training")
    assert evaluate(trained, "tiger")[1] and read_predictions(folder / "predictions.jsonl") == predictions
    left = replace(trained, eval=replace(trained.eval, exclude_history=True, num_beams=40))
    assert not left_out(left, ["tiger", "liger"])  # they search what is left, whatever was stored
    for name in ("tiger", "liger"):
        evaluate(left, name)
        for one in read_predictions(trained.folder / f"eval/{name}/predictions.jsonl"):
            assert one.exact and not {*one.items} & {*one.history}
    assert "liger orders lists by cosines, so eval.oracle_examples has no search of it to replay." in caplog.text
    assert not (trained.folder / "eval/liger/oracle.jsonl").exists()


def test_the_command_says_how_good_lists_are_once(trained, capsys):
    """Those that the training left are of a wider search, so two figures of one name would differ."""
    run(replace(trained, baseline=BaselineConfig(model="tiger", epochs=1, max_history=6, **TRAINED["tiger"])), ("baseline",))
    training, evaluation = (line for line in capsys.readouterr().out.splitlines() if "tiger" in line.split(" ")[0])
    assert "parameters " in training and "milliseconds_per_list" in training and "@" not in training
    assert evaluation.startswith("eval/tiger") and evaluation.count("HR@1 ") == 1


def test_lists_and_trainings_of_an_earlier_version(trained):
    """Its evaluations took the lists that training had left, so they count no more; its trainings do, whatever these say."""
    folder = trained.folder / "baselines/tiger"
    before = Manifest.load(folder)
    section = {name: value for name, value in before.config["baseline"].items() if name not in TIES}
    reseal(folder, config={**before.config, "baseline": section})
    assert not left_out(trained, ["tiger"])
    evaluation, _ = evaluate(trained, "tiger")
    assert why_measured_otherwise(trained.folder, "tiger", evaluation) is None
    reseal(trained.folder / "eval/tiger", key=evaluation.key.rpartition(".")[0])
    evaluation = Manifest.load(trained.folder / "eval/tiger")
    assert "by an earlier version, which measured otherwise" in why_measured_otherwise(trained.folder, "tiger", evaluation)
    assert evaluate(trained, "tiger")[1]
    reseal(folder, config=before.config)


def test_an_evaluation_is_outdated_once_the_run_has_other_item_vectors(trained):
    """Of a baseline that must be trained again before, this is said, and `minionerec eval` leaves it out."""
    folder, file = trained.folder, Path(trained.sid.vectors)
    baseline = Manifest.load(folder / "baselines/liger")
    made_from = {name: baseline.inputs[name] for name in ("data", "vectors")}
    with Recipe("baselines/rpg", folder / "baselines/rpg", {"baseline": {"top": 50, **TIES}}, made_from, 0).write():
        pass
    names = {
        "liger": evaluate(trained, "liger")[0],
        "tiger": evaluate(trained, "tiger")[0],
        "text": evaluate(trained, "text")[0],
        "rpg": replace(
            baseline, key="of-2", stage="eval/rpg", inputs={"baselines/rpg": Manifest.load(folder / "baselines/rpg").digest}
        ),
    }

    def outdated():
        return {name: reason for name, one in names.items() if (reason := why_outdated(folder, name, one)) is not None}

    assert not outdated() and not left_out(trained, names)
    vectors = np.load(file)
    try:
        np.save(file, vectors[::-1])
        others = "made with other item vectors than the run has"
        first = "; first minionerec baseline --baseline.model "
        assert outdated() == {"liger": f"{others}{first}liger", "text": others, "rpg": f"{others}{first}rpg"}
        reasons = left_out(trained, names)
        assert {*reasons} == {"liger", "rpg"} and "was made with other item vectors than the run has now" in reasons["rpg"]
        assert "--baseline.model rpg --replace" in reasons["rpg"]
        file.unlink()  # nobody knows whether they would be others
        assert not outdated() and "no such file" in left_out(trained, names)["liger"]
    finally:
        np.save(file, vectors)
        shutil.rmtree(folder / "baselines/rpg")


def test_what_belongs_to_other_sids_or_vectors_is_refused(trained, monkeypatch):
    monkeypatch.setattr(coded, "coded_inputs", lambda config: {"vectors": "another"})
    with pytest.raises(ArtifactError, match=r"liger: was trained with other item vectors .*--baseline\.model liger --replace"):
        evaluate(trained, "liger")
    assert "was trained with other item vectors" in left_out(trained, ["tiger", "liger"])["liger"]  # `minionerec eval` goes on

    def none(config):
        raise ConfigError("no encoder here")

    monkeypatch.setattr(coded, "coded_inputs", none)
    assert left_out(trained, ["liger", "sft"]) == {"liger": "no encoder here"}
    monkeypatch.undo()
    manifest = Manifest.load(trained.folder / "baselines/tiger")
    reseal(trained.folder / "baselines/tiger", inputs={**manifest.inputs, "sid": "another"})
    assert "was made from another sid than the one in this run" in left_out(trained, ["tiger", "liger"])["tiger"]
    with pytest.raises(ArtifactError, match=r"tiger: was made from another sid"):
        evaluate(trained, "tiger")
    with pytest.raises(ArtifactError, match=r"lazy: no finished artefact here\. Make it first: minionerec baseline"):
        evaluate(trained, "lazy")
