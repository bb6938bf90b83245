from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.config import Config, DataConfig, PairsConfig
from minionerec.data import pairs, prepare, prepare_pairs
from minionerec.data.bad_rows import Problems
from minionerec.data.dataset import INTERACTION_SCHEMA, SPLITS
from minionerec.data.pairs import PairSet, draw, purchases, rated, rule_of, sequences
from minionerec.errors import ArtifactError, ConfigError, DataError
from tests.examples import examples
from tests.small import SEQUENCES, leave_one_out, write_config

pytestmark = pytest.mark.fast

ITEMS = [f"i{number}" for number in range(12)]
CATALOG = pl.DataFrame({"item_id": ITEMS, "title": ITEMS, "text": ITEMS})
ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 11), st.integers(1, 5)), min_size=20, max_size=120)


def dataset(rows):
    """A dataset of rows (user, item, rating) in order of time; the rules read its catalog and interactions only."""
    reached, lines = Counter(), []
    for time, (user, item, rating) in enumerate(rows, 1):
        lines.append((f"u{user}", reached[user], item, time, rating))
        reached[user] += 1
    interactions = pl.DataFrame(lines, schema=INTERACTION_SCHEMA, orient="row").sort("user", "position")
    return replace(leave_one_out(SEQUENCES, 12, max_history=2), interactions=interactions)


def obvious(data, past_only):
    """The rule `rated`, user by user: {user: (history, likes, dislikes)}."""
    users, found = defaultdict(dict), {}
    for row in data.interactions.sort("user", "position").iter_rows(named=True):
        users[row["user"]].pop(row["item"], None)  # the last rating of an item counts, at its place
        users[row["user"]][row["item"]] = (row["position"], row["rating"])
    for user, rated_items in users.items():
        likes = [item for item, (_, rating) in rated_items.items() if rating > 3]
        if len(likes) <= 2:
            continue
        end = rated_items[likes[-3]][0]
        dislikes = [i for i, (place, r) in rated_items.items() if r < 3 and (place > end or not past_only)]
        if dislikes:
            found[user] = (likes[:-2], likes[-2:], dislikes)
    return found


@examples(40)
@given(rows=ROWS, past_only=st.booleans())
def test_rated_equals_the_obvious_loop(rows, past_only):
    data = dataset(rows)
    expected = obvious(data, past_only)
    config = PairsConfig(order="past_only" if past_only else "reference")
    try:
        candidates = rated(data.interactions, config)
    except DataError as error:
        assert not expected and "pairs.rule rated" in str(error)
        return
    found = {}
    for number, (user, history) in enumerate(zip(candidates.users, candidates.histories, strict=True)):
        of_user = candidates.rows.filter(pl.col("user") == number)
        items = [of_user.filter(label=label)["candidate"].to_list() for label in (1, 0)]
        found[user] = (history.to_list(), items[0], sorted(items[1]))
        assert not past_only or not of_user["older"].any()
    assert found == {user: (history, likes, sorted(dislikes)) for user, (history, likes, dislikes) in expected.items()}
    drawn = draw(candidates, replace(config, test_rows=1, valid_share=0.0), 0)
    train, last = set(drawn.splits["train"]["user"]), data.interactions.unique(["user", "item"], keep="last")
    ratings = {
        (user, item): rating for user, item, rating in last.select("user", "item", "rating").iter_rows() if user in train
    }
    for item, (had, likes, labelled) in enumerate(drawn.counts(12).iter_rows()):
        of_item = [rating for (_, other), rating in ratings.items() if other == item]
        assert (had, likes, labelled) == (len(of_item), sum(r > 3 for r in of_item), sum(r != 3 for r in of_item))


@examples(30)
@given(
    rows=ROWS, seed=st.integers(0, 5), per_label=st.integers(1, 3), test_rows=st.integers(1, 12), train_rows=st.integers(0, 9)
)
def test_the_walk_draws_whole_users_for_disjoint_splits(rows, seed, per_label, test_rows, train_rows):
    config = PairsConfig(per_label=per_label, test_rows=test_rows, train_rows=train_rows, valid_share=0.5, random_negatives=3)
    try:
        candidates = purchases(dataset(rows), replace(config), seed)
    except DataError:
        return
    drawn = draw(candidates, config, seed)
    frames = drawn.splits
    users = [set(frame["user"]) for frame in frames.values()]
    assert sum(map(len, users)) == len(set.union(*users))
    everything = pl.concat(frames.values())
    assert everything.group_by("user", "label").len()["len"].max() <= per_label
    assert (everything.group_by("user").agg(pl.col("label").n_unique())["label"] == 2).all()
    # The walk takes users one after the other, stops as soon as it has enough, and goes on where it stopped.
    sizes = dict(everything.group_by("user").len().iter_rows())
    reached = drawn.order.filter(pl.col("split").is_not_null())
    assert reached.equals(drawn.order.head(len(reached))) and set(reached["user"]) == set.union(*users)
    kinds = (reached["split"] == "test").to_list()
    assert kinds == sorted(kinds, reverse=True)
    for wanted, count in (
        (test_rows, [sizes[u] for u in reached.filter(split="test")["user"]]),
        (train_rows, [sizes[u] for u in reached.filter(pl.col("split") != "test")["user"]]),
    ):
        assert sum(count[:-1]) < wanted or not count
        assert sum(count) >= wanted or len(reached) == len(drawn.order)
    # The counts are of train users alone, with all that these have done.
    data, counts, train = dataset(rows), drawn.counts(12), set(frames["train"]["user"])
    bought = [item for user, item in data.interactions.select("user", "item").iter_rows() if user in train]
    assert counts["had"].to_list() == counts["likes"].to_list() == np.bincount(bought, minlength=12).tolist()
    again = draw(candidates, config, seed)
    assert all(frames[name].equals(again.splits[name]) for name in SPLITS)


@examples(30)
@given(rows=ROWS, seed=st.integers(0, 3))
def test_purchases_never_draw_what_the_user_has_had(rows, seed):
    try:
        data = dataset(rows)
        candidates = purchases(data, PairsConfig(random_negatives=4), seed)
    except DataError:
        return
    had = dict(data.interactions.group_by("user").agg("item").iter_rows())
    for number, user in enumerate(candidates.users):
        of_user = candidates.rows.filter(pl.col("user") == number)
        negatives = of_user.filter(label=0)["candidate"].to_list()
        assert len(set(negatives)) == len(negatives) == min(4, 12 - len(set(had[user]))) and not set(negatives) & set(had[user])
        assert of_user.filter(label=1)["candidate"].to_list() == had[user][-2:]
        assert candidates.histories[number].to_list() == had[user][:-2][-20:]


def test_random_negatives_are_uniform():
    data = dataset([(user, item, 5) for user in range(800) for item in (0, 3, 4, 9)])
    drawn = purchases(data, PairsConfig(random_negatives=2), 0).rows.filter(label=0)["candidate"].to_numpy()
    counts = np.bincount(drawn, minlength=12)
    assert counts[[0, 3, 4, 9]].sum() == 0 and counts[counts > 0].min() > 140 and counts.max() < 260  # 200 each


def test_examples_alone_tell_the_sequences():
    data = leave_one_out(SEQUENCES, 6, max_history=2)
    rows = sequences(data).sort("user", "position")
    assert dict(rows.group_by("user").agg("item").iter_rows()) == SEQUENCES
    assert rule_of(data, PairsConfig()) == "purchases"
    # A user whose examples say two things about one place is left out.
    wrong = data.test.with_columns(history=pl.when(pl.col("user") == "long").then([5, 5]).otherwise("history"))
    assert sequences(replace(data, test=wrong))["user"].unique().sort().to_list() == ["mid", "short"]


def test_seeds_and_shares():
    rows = [(user, item, 5 if item % 3 else 1) for user in range(40) for item in range(9)]
    candidates = rated(dataset(rows).interactions, PairsConfig())
    drawn = draw(candidates, PairsConfig(test_share=0.25, valid_share=0.2), 1)
    assert [drawn.splits[name]["user"].n_unique() for name in SPLITS] == [24, 6, 10]
    assert drawn.order["user"].to_list() != draw(candidates, PairsConfig(), 2).order["user"].to_list()
    assert len(draw(candidates, PairsConfig(test_share=1.0), 1).splits["train"]) == 0


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([(0, i, 5) for i in range(6)], {}, "are not both likes (above pairs.positive 3) and dislikes"),
        ([(0, i, 1) for i in range(6)], {}, "leave out data.positive"),
        (
            [(0, i, 5 if i > 4 else 1) for i in range(7)] + [(1, i, 5) for i in range(5)],
            {},
            "no user has a history and candidates",
        ),
        ([(0, i, 5 if i else 3) for i in range(6)], {"neutral": []}, None),
    ],
)
def test_missing_labels_are_named(rows, changes, message):
    if message is None:  # 3 is a dislike once it is not neutral
        assert len(rated(dataset(rows).interactions, PairsConfig(**changes)).users) == 1
        return
    with pytest.raises(DataError) as error:
        rated(dataset(rows).interactions, PairsConfig(**changes))
    assert "pairs.rule rated" in str(error.value) and message in str(error.value)


def test_data_without_ratings_or_of_no_use():
    data = leave_one_out(SEQUENCES, 6, max_history=2)
    with pytest.raises(DataError, match=r"pairs.rule rated: the data has no ratings"):
        rated(data.interactions, PairsConfig(rule="rated"))
    with pytest.raises(DataError, match=r"pairs.rule purchases: no user has a history"):
        purchases(data, PairsConfig(rule="purchases", last_positives=9), 0)
    with pytest.raises(ConfigError, match=r"pairs.positive is 4.0, but the rule is purchases"):
        rule_of(data, PairsConfig(positive=4.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "mind"}, "needs pairs.path"),
        ({"path": "x"}, "reads the run's Dataset"),
        ({"rule": "impressions"}, "it has rated or purchases"),
        ({"source": "mind", "path": "x", "rule": "rated"}, "it has impressions"),
        ({"neutral": [3.0, 4.0]}, "pairs.neutral names 4, which is above pairs.positive 3"),
        ({"test_share": 0.5, "test_rows": 9}, "pairs.test_rows is 9, but pairs.test_share is set"),
        ({"rule": "purchases", "order": "past_only"}, "pairs.order is past_only, but the rule is purchases"),
        ({"rule": "rated", "random_negatives": 4}, "pairs.random_negatives is 4, but the rule is rated"),
        ({"source": "recbench", "path": "x", "last_positives": 1}, "but the rule is impressions"),
    ],
)
def test_settings_without_effect_are_refused(fields, message):
    with pytest.raises(ConfigError) as error:
        PairsConfig(**fields)
    assert message in str(error.value)


def rated_csv(folder, ratings=(1, 2, 3, 4, 5)):
    """A run's configuration with ratings in its csv files."""
    path = write_config(folder, pairs={"test_share": 0.5})
    rng, file = np.random.default_rng(0), folder / "raw" / "interactions.csv"
    header, *lines = file.read_text().splitlines()
    rows = [f"{line},{rng.choice(ratings)}" for line in lines]
    file.write_text("\n".join([f"{header},rating", *rows]) + "\n")
    return path


def test_the_command_prepares_data_and_pairs_once(tmp_path, capsys):
    path = rated_csv(tmp_path)
    assert main(["pairs", "prepare", "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "data " in printed and "pairs " in printed
    loaded, manifest = PairSet.load(tmp_path / "run" / "pairs"), Manifest.load(tmp_path / "run" / "pairs")
    assert manifest.metrics["rule"] == "rated" and manifest.metrics["test"] == len(loaded.test) > 20
    assert len(loaded.catalog) == 48 and set(loaded.test["user"]).isdisjoint(loaded.train["user"])
    order = pl.read_parquet(tmp_path / "run" / "pairs" / "users.parquet")
    assert order.filter(split="test")["user"].to_list() == loaded.test["user"].unique(maintain_order=True).to_list()
    assert main(["pairs", "prepare", "--config", str(path)]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert main(["pairs", "prepare", "--config", str(path), "--pairs.history", "3"]) == 2
    assert "pairs.history: 20 there, 3 now" in capsys.readouterr().err
    assert main(["pairs", "prepare", "--config", str(path), "--pairs.history", "3", "--replace"]) == 0
    assert PairSet.load(tmp_path / "run" / "pairs").test["history"].list.len().max() == 3


def test_a_damaged_artefact_is_named(tmp_path):
    path = tmp_path / "pairs"
    path.mkdir()
    rows = pl.DataFrame({"user": ["u"], "history": [[0]], "candidate": [1], "label": [1]}, schema=pairs.PAIR_SCHEMA)
    counts = pl.DataFrame({"had": [1], "likes": [1], "labelled": [1]}, schema=pairs.COUNT_SCHEMA)
    PairSet(CATALOG, rows, rows, rows, counts).save(path)
    assert PairSet.load(path).valid.equals(rows)
    rows.drop("label").write_parquet(path / "valid.parquet")
    with pytest.raises(ArtifactError, match=r"valid.parquet: columns .* Run minionerec pairs prepare again"):
        PairSet.load(path)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ((5,), "are not both likes"),
        (("good", 3), "rating 'good' is not a number"),
        (("inf", 3), "rating 'inf' is not a number"),
    ],
)
def test_bad_ratings_end_in_one_message(tmp_path, capsys, ratings, message):
    path = rated_csv(tmp_path, ratings)
    assert main(["pairs", "prepare", "--config", str(path)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "Traceback" not in error and not (tmp_path / "run" / "pairs").exists()


def test_pairs_need_data(tmp_path):
    with pytest.raises(ArtifactError, match="minionerec data prepare"):
        prepare_pairs.prepare_pairs(Config(out=str(tmp_path)))


def test_movielens_has_the_figures_of_its_ratings():
    folder = prepare.cache_folder() / "ml-100k"
    if not (folder / "ml-100k.inter").is_file():
        pytest.skip("MovieLens-100K is not in the cache")
    data, _ = prepare.READERS["ml-100k"].read(folder, DataConfig(), Problems())
    candidates = rated(data.interactions, PairsConfig())
    assert (len(candidates.users), candidates.figures["dislikes"]) == (914, 17_466)
    assert candidates.figures["dislikes_older_than_history"] == 17_466 - 2_550
    assert len(draw(candidates, PairsConfig(), 0).splits["test"]) == 8_432
    late = rated(data.interactions, PairsConfig(order="past_only"))
    assert (len(late.users), late.rows["label"].value_counts(sort=True)["count"].to_list()) == (494, [2_550, 988])
