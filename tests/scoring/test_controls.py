from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from minionerec.config import Config, ScoreConfig, SidConfig
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.eval.pair_leaderboard import merged, read_leaderboard, write_leaderboard
from minionerec.report.pair_table import caption, score_table
from minionerec.scoring import controls
from minionerec.scoring.controls import CONTROLS, missing, score_controls
from minionerec.statistics.pair_metrics import auc
from minionerec.training.scored_pairs import pairs_of_split, read_scores, score_recipe, scored_pairs, write_scores
from tests.scoring.data import planted, save

pytestmark = pytest.mark.fast

TFIDF = SidConfig(encoder="tfidf")


def auc_of(name, pairs, config=None):
    config = config or Config(sid=TFIDF)
    rows = pairs_of_split(pairs, config)
    scores = CONTROLS[name].score(pairs, rows, config)
    return auc(scored_pairs(rows.select("user", "candidate", "label").with_columns(score=pl.Series(scores))))[0]


def test_what_is_planted_is_found_by_the_control_that_looks_for_it():
    genre, item, chance = planted("genre"), planted("item"), planted("none")
    assert auc_of("like-rate", item) > 0.9 and auc_of("like-rate", genre) < 0.65
    assert auc_of("overlap", genre) > 0.95 and 0.4 < auc_of("overlap", item) < 0.6
    assert auc_of("text-vectors", genre) > 0.9
    assert all(0.42 < auc_of(name, chance) < 0.58 for name in CONTROLS)
    assert 0.42 < auc_of("random", item) < 0.58


def test_like_rate_and_popularity_by_hand():
    pairs = planted("item", users=30, items=12)
    rows = pairs_of_split(pairs, Config())
    likes, labelled = pairs.counts["likes"].to_list(), pairs.counts["labelled"].to_list()
    share = sum(likes) / sum(labelled)
    rates = 1 / (1 + np.exp(-CONTROLS["like-rate"].score(pairs, rows, Config())))
    counted = CONTROLS["popularity"].score(pairs, rows, Config())
    for place, item in enumerate(rows["candidate"]):
        assert rates[place] == pytest.approx((likes[item] + 5 * share) / (labelled[item] + 5))
        assert counted[place] == pairs.counts["had"][item]


def test_vectors_are_those_of_a_loop():
    pairs = planted("genre", users=12, items=12)
    rows, config = pairs_of_split(pairs, Config(sid=TFIDF)), Config(sid=TFIDF)
    vectors = controls.item_vectors(pairs, TFIDF, config.seed)
    expected = [
        np.mean([vectors[item] for item in row["history"]], axis=0) @ vectors[row["candidate"]]
        for row in rows.iter_rows(named=True)
    ]
    np.testing.assert_allclose(CONTROLS["text-vectors"].score(pairs, rows, config), expected, atol=1e-6)


def test_labels_of_the_test_split_change_no_score():
    pairs = planted("genre", users=20)
    turned = pairs.test.with_columns(label=1 - pl.col("label"))
    for name, control in CONTROLS.items():
        scores = [control.score(pairs, rows, Config(sid=TFIDF)) for rows in (pairs.test, turned)]
        assert np.array_equal(*scores), name


@pytest.fixture
def run(tmp_path):
    """A run with planted pairs."""
    save(planted("item", users=40), tmp_path / "run")
    return Config(name="planted", out=str(tmp_path / "run"), sid=TFIDF, score=ScoreConfig(resamples=60))


def board_of(config):
    assert all(fresh for _, fresh in score_controls(config))
    assert write_leaderboard(config)[1]
    return read_leaderboard(config.folder)


def test_the_leaderboard_has_every_control_and_is_made_once(run):
    board = board_of(run)
    assert {entry["name"] for entry in board["entries"]} == set(CONTROLS) and board["left_out"] == {}
    assert board["entries"][0]["name"] == "like-rate" and "against_reference" not in board["entries"][0]
    values = [entry["metrics"]["GAUC"]["value"] for entry in board["entries"]]
    assert values == sorted(values, reverse=True)
    for entry in board["entries"]:
        manifest, frame = read_scores(run.folder / "scoring" / entry["name"])
        assert entry["metrics"]["AUC"]["value"] == pytest.approx(auc(scored_pairs(frame))[0]) == manifest.metrics["AUC"]
        assert ("LogLoss" in entry["metrics"]) == (CONTROLS[entry["name"]].scale == "logit")
        if entry["name"] != "like-rate":
            change = entry["against_reference"]["GAUC"]
            assert change["value"] == pytest.approx(entry["metrics"]["GAUC"]["value"] - values[0]) and change["p"] < 0.05
    assert board["split"] | {"likes": 0} == {
        "rows": 200,
        "users": 20,
        "users_judged": 20,
        "likes": 0,
        "rows_older_than_history": 0,
        "parts": {"seen": 200, "unseen": 0},
    }
    assert not any(fresh for _, fresh in score_controls(run)) and not write_leaderboard(run)[1]


def test_other_settings_make_other_scores_and_an_old_score_is_not_shown(run):
    board_of(run)
    few = Config(name="planted", out=run.out, sid=TFIDF, score=ScoreConfig(resamples=60, users=3), replace=True)
    pairs = planted("item", users=40)
    assert len(pairs_of_split(pairs, few)) == 30
    next(score_controls(few))  # one control of the new setting; the others are of the old one
    write_leaderboard(few)
    assert [entry["name"] for entry in read_leaderboard(run.folder)["entries"]] == ["random"]
    board = board_of_again(few)
    assert board["split"]["users"] == 3 and board["split"]["rows_older_than_history"] is None


def board_of_again(config):
    list(score_controls(config))
    write_leaderboard(config)
    return read_leaderboard(config.folder)


def test_rows_of_another_run_are_merged_if_they_are_of_the_same_pairs(run, tmp_path):
    board = board_of(run)
    recipe = score_recipe(run, "model")
    rows = planted("item", users=40).test
    with recipe.write() as draft:
        write_scores(draft, rows, rows["label"].to_numpy() * 2.0 - 1, label="the answer", kind="model", scale="logit")
    other = board_of_again(run)
    assert set(board["settings"]) == {"split", "users", "ties", "resamples"}  # another run may ask another model
    both = merged(board, {"runs/other": other | {"run": "other"}})
    assert [entry["name"] for entry in both["entries"]] == ["model", *(entry["name"] for entry in board["entries"])]
    with pytest.raises(DataError, match=r"runs/x: its leaderboard has other pairs and settings than this run's"):
        merged(board, {"runs/x": other | {"pairs": "?", "settings": {}}})
    printed = "".join(str(cell) for column in score_table(both, "planted").columns for cell in column.cells)
    assert "the answer" in printed and "1.0000" in printed


def test_a_field_without_an_effect_is_refused_and_one_of_any_model_is_not():
    for given, message in (
        ({"dtype": "bfloat16"}, "score.dtype is 'bfloat16', but score.model is not set, and score.encoder is no causal LM"),
        ({"encoder": "minilm", "dtype": "bfloat16"}, "score.encoder is no causal LM"),
        ({"encoder": "minilm", "suffix": "?"}, "score.model is not set: nothing is asked"),
        ({"max_tokens": 9}, "neither score.model nor score.encoder is set"),
        ({"model": "x", "pooling": "last"}, "score.encoder is not set: no vectors"),
    ):
        with pytest.raises(ConfigError, match=message):
            ScoreConfig(**given)
    assert ScoreConfig(encoder="minilm", max_tokens=9, before_history="x").pooling == "own"
    assert ScoreConfig(batch_users=2, row_tokens=64, shard_users=4).model is None  # a trained model is scored with them


def test_what_a_reader_must_know_stands_below_the_table(run):
    board = board_of(run)
    assert "detectable" in caption(board) and "popular" not in caption(board)
    board |= {"rule": "purchases", "left_out": {"overlap": "no text"}, "settings": board["settings"] | {"ties": "last"}}
    board["split"] = board["split"] | {"rows_older_than_history": 150, "users_judged": 18}
    told = caption(board)
    assert all(
        words in told
        for words in ("how popular", "75% of the pairs", "2 users have", "dislikes are ranked first", "overlap: no text")
    )


def test_what_cannot_be_had_is_left_out_with_its_reason(run, monkeypatch):
    pairs = planted("item", users=40)
    nobody = pairs.counts.with_columns(pl.all() * 0)
    silent = pairs.catalog.with_columns(text=pl.lit(""))
    save(type(pairs)(silent, pairs.train, pairs.valid, pairs.test, nobody), run.folder)
    board = board_of(run)
    assert [entry["name"] for entry in board["entries"]] == ["random"] and board["reference"] is None
    assert set(board["left_out"]) == {"popularity", "like-rate", "overlap", "text-vectors"}
    assert "no train users" in board["left_out"]["like-rate"] and "without a text" in board["left_out"]["overlap"]
    assert "like-rate" not in [column.header for column in score_table(board, "x").columns]

    def absent(config):
        raise ConfigError("sid.encoder minilm needs the package")

    monkeypatch.setattr(controls, "check_encoder", absent)
    assert missing("text-vectors", pairs, run) == "sid.encoder minilm needs the package"
    assert missing("overlap", pairs, run) is None


def test_train_users_who_like_everything_have_no_like_rate(run):
    """Its logit would be infinite."""
    pairs = planted("item", users=40)
    liked = pairs.counts.with_columns(likes=pl.col("labelled"))
    given = type(pairs)(pairs.catalog, pairs.train, pairs.valid, pairs.test, liked)
    assert missing("like-rate", given, run) == "all labels of the train users are likes"
    assert missing("popularity", given, run) is None


def test_vectors_from_a_file_need_no_text(run, tmp_path):
    pairs = planted("item", users=40)
    silent = type(pairs)(pairs.catalog.with_columns(text=pl.lit("")), pairs.train, pairs.valid, pairs.test, pairs.counts)
    np.save(tmp_path / "vectors.npy", np.ones((len(pairs.catalog), 2), dtype=np.float32))
    given = replace(run, sid=replace(run.sid, vectors=str(tmp_path / "vectors.npy")))
    assert missing("text-vectors", silent, given) is None and missing("overlap", silent, given) is not None


def test_empty_and_one_sided_splits_and_scores_that_are_no_numbers(run, tmp_path):
    pairs = planted("item", users=40)
    with pytest.raises(DataError, match="the valid split is empty"):
        pairs_of_split(
            type(pairs)(pairs.catalog, pairs.train, pairs.valid.clear(), pairs.test, pairs.counts),
            Config(score=ScoreConfig(split="valid")),
        )
    with pytest.raises(DataError, match="no user of the test split has both labels"):
        pairs_of_split(type(pairs)(pairs.catalog, pairs.train, pairs.valid, pairs.test.filter(label=1), pairs.counts), Config())
    with pytest.raises(DataError, match="the score of pair 1 is nan"), score_recipe(run, "x").write() as draft:
        write_scores(draft, pairs.test, np.array([0.0, np.nan, *[0.0] * 198]), label="x", kind="model", scale="any")
    assert not (run.folder / "scoring" / "x").exists()
    with pytest.raises(ArtifactError, match="minionerec pairs prepare"):
        score_recipe(Config(out=str(tmp_path / "nothing")), "x")
