import numpy as np
import pytest

from minionerec.baselines.trivial import (
    ItemKNN,
    ItemKNNOptions,
    RepeatLast,
    floor_ranking,
    make_trivial,
    popularity,
    popularity_places,
    repeat_last,
)
from minionerec.config import BaselineConfig
from minionerec.errors import ConfigError
from minionerec.eval.lists import RankedLists
from minionerec.eval.predictions import as_predictions
from minionerec.eval.slices import EVIDENCE, evidence
from minionerec.recommend import cache
from minionerec.recommend.cache import Interactions
from minionerec.training.ranking import rank_split
from minionerec.training.ranking_data import from_dataset, from_sequences
from tests.small import SEQUENCES, leave_one_out, random_dataset

RING = {f"u{user}": [(user * 5 + step + (step * user) % 2) % 12 for step in range(4 + user % 5)] for user in range(20)}


def test_popularity_ranks_by_count_then_index_for_every_row():
    dataset = leave_one_out(SEQUENCES, 6, 20)
    rankings = popularity(dataset, 50)
    assert [ranking.tolist() for ranking in rankings] == [[2, 3, 4, 0, 1, 5]] * 3
    assert popularity(dataset, 2)[0].tolist() == [2, 3]
    assert len(popularity(dataset, 2, split="train")) == len(dataset.train)


def test_places_by_popularity_are_those_of_the_scores():
    dataset = random_dataset(users=30)[0]
    data = from_dataset(dataset, 20)
    ranking = floor_ranking(make_trivial(BaselineConfig(model="popularity"), data), data, "test", 3)
    for exclude, ranks, ties in (
        (False, ranking.ranks, ranking.ties),
        (True, ranking.left_out, ranking.left_out_ties),
    ):
        best, tied = popularity_places(dataset, "test", exclude)
        assert (best.tolist(), tied.tolist()) == (ranks.tolist(), ties.tolist())
    assert (ranking.ties > 1).any() and (ranking.left_out_ties != ranking.ties).any()


def test_repeat_last_is_recent_first_and_distinct():
    dataset = leave_one_out(SEQUENCES, 6, 20)
    assert [ranking.tolist() for ranking in repeat_last(dataset.test, 50)] == [[0, 4], [0, 2, 3], [1, 3, 4]]
    assert [ranking.tolist() for ranking in repeat_last(dataset.test, 1)] == [[0], [0], [1]]


def scored(name, dataset):
    data = from_dataset(dataset, 20)
    return rank_split(make_trivial(BaselineConfig(model=name), data), data, "test", 6)


def test_trivial_recommenders_rank_as_the_eval_stage_does():
    dataset = leave_one_out(SEQUENCES, 6, 20)
    for name, rankings in (("popularity", popularity(dataset, 6)), ("repeat", repeat_last(dataset.test, 6))):
        ranking = scored(name, dataset)
        assert [(ids - 1).tolist() for ids in ranking.lists] == [ids.tolist() for ids in rankings]
    assert ranking.ranks.tolist() == [np.inf, np.inf, 0.0]  # target 1 in [0 4], [0 2 3] and [1 3 4]


def test_markov_counts_what_followed_and_backs_off_to_popularity():
    # Training: 0 1 2 1 / 1 2 / 1 0; 2 follows 1 twice, 0 once.
    dataset = leave_one_out({"a": [0, 1, 2, 1, 1, 9], "b": [1, 2, 0, 9], "c": [1, 0, 9, 9]}, 10, 20)
    ranking = scored("markov", dataset)
    last_is_1, last_is_0, last_is_9 = ((ids - 1).tolist() for ids in ranking.lists)
    assert last_is_1[:2] == [2, 0]
    assert last_is_0[0] == 1
    assert last_is_9 == [1, 0, 2, 3, 4, 5]  # never seen in training: by popularity, then index


def test_item_knn_is_the_cosine_over_users():
    dataset = leave_one_out({"a": [0, 1, 5, 5], "b": [0, 1, 2, 5, 5], "c": [2, 3, 5, 5], "d": [0, 3, 0, 9]}, 10, 20)
    data = from_dataset(dataset, 20)
    matrix = np.zeros((4, 11))
    for user, own in enumerate([[0, 1], [0, 1, 2], [2, 3], [0, 3]]):
        matrix[user, [item + 1 for item in own]] = 1
    norms = np.linalg.norm(matrix, axis=0)
    expected = matrix.T @ matrix / (np.outer(norms, norms) + 2.0)
    np.fill_diagonal(expected, 0)
    rows = data.rows["test"]
    scores = ItemKNN(data, ItemKNNOptions(neighbours=10, shrinkage=2.0))(rows).numpy()
    for row in range(len(rows)):
        histories = rows.history(row)  # an item that is there twice counts twice
        np.testing.assert_allclose(scores[row], expected[histories].sum(0), atol=2e-9)
    nearest = ItemKNN(data, ItemKNNOptions(neighbours=1, shrinkage=2.0))(rows).numpy()
    assert ((nearest > 1e-6).sum(1) <= [len(set(rows.history(row))) for row in range(4)]).all()


def test_repeat_is_refused_where_the_history_is_hidden(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("u 1 2 3 4\n")
    with pytest.raises(ConfigError, match="wearec hides"):
        RepeatLast(from_sequences(path, "wearec", 5))


def test_the_history_of_a_floor_is_what_the_component_of_the_cache_sees():
    dataset = leave_one_out(RING, 12, 20)
    interactions, histories = Interactions.of_dataset(dataset), dataset.test["history"].to_list()
    vectors = np.random.default_rng(0).normal(size=(12, 3))
    data = from_dataset(dataset, 20)
    rows = data.rows["test"]
    skip = make_trivial(BaselineConfig(model="skip"), data)(rows).numpy()
    np.testing.assert_allclose(skip[:, 1:], cache.Skip(interactions).scores(histories), atol=2e-9)
    unknown = skip[:, 1:] < 1e-8  # by popularity, which breaks ties of all the others too
    assert unknown.any() and (np.diff(skip[0][unknown.nonzero()[1] + 1]) != 0).any()
    text = make_trivial(BaselineConfig(model="text"), data, vectors)(rows).numpy()
    np.testing.assert_allclose(text[:, 1:], cache.TextNeighbours(interactions, vectors).probabilities(histories))
    assert (skip[:, 0] == 0).all() and (text[:, 0] == 0).all()


def test_the_mixture_is_fitted_on_valid_and_takes_what_is_there():
    dataset = leave_one_out(RING, 12, 20)
    data = from_dataset(dataset, 20)
    vectors = np.random.default_rng(0).normal(size=(12, 3))
    with_text = make_trivial(BaselineConfig(model="mixture"), data, vectors)
    counts = make_trivial(BaselineConfig(model="mixture"), data)
    chosen = make_trivial(BaselineConfig(model="mixture", components=["popularity", "markov"]), data, vectors)
    assert [list(made.mixture.components) for made in (with_text, counts, chosen)] == [
        list(cache.UNTRAINED),
        list(cache.COUNTS),
        ["popularity", "markov"],
    ]
    interactions, valid = Interactions.of_dataset(dataset), dataset.valid
    fitted = cache.Mixture.fit(
        cache.make_components(cache.COUNTS, interactions),
        cache.Buckets(interactions),
        valid["history"].to_list(),
        valid["target"].to_numpy(),
    )
    np.testing.assert_array_equal(counts.mixture.weights.values, fitted.weights.values)
    expected = fitted.probabilities(dataset.test["history"].to_list())
    np.testing.assert_array_equal(counts(data.rows["test"]).numpy()[:, 1:], expected)
    lists = floor_ranking(counts, data, "test", 3).lists
    assert [(ids - 1).tolist() for ids in lists] == np.argsort(-expected, axis=1, kind="stable")[:, :3].tolist()


def test_text_without_vectors_is_refused(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("u 1 2 3 4\nv 2 3 1 4\n")
    with pytest.raises(ConfigError, match=r"baseline\.model has text, which needs item vectors, but a file of sequences"):
        BaselineConfig(model="text", protocol="recbole", sequences=str(path))
    with pytest.raises(ConfigError, match=r"baseline\.components has text"):
        BaselineConfig(model="mixture", components=["text"], protocol="wearec", sequences=str(path))
    with pytest.raises(ConfigError, match=r"baseline\.components is an empty list"):
        BaselineConfig(model="mixture", components=[])
    data = from_sequences(path, "recbole", 5)
    with pytest.raises(ConfigError, match="text needs item vectors"):
        make_trivial(BaselineConfig(model="text"), data)


@pytest.mark.parametrize("protocol", ["recbole", "wearec"])
def test_floors_rank_every_protocol(tmp_path, protocol):
    path = tmp_path / "ring.txt"
    lines = [f"u{user} " + " ".join(str(item + 1) for item in items) for user, items in RING.items()]
    path.write_text("\n".join(lines) + "\n")
    data = from_sequences(path, protocol, 5)
    for name in ("skip", "mixture"):
        ranking = rank_split(make_trivial(BaselineConfig(model=name), data), data, "test", 5)
        assert np.isfinite(ranking.ranks).all() and (ranking.ranks >= 0).all() and len(ranking.lists) == len(RING)
        # The protocol `wearec` hides the history: nothing of it comes before an item with a chance.
        if protocol == "wearec":
            assert all(
                len(set(ids[:3].tolist()) & set(data.rows["test"].history(row).tolist())) == 0
                for row, ids in enumerate(ranking.lists)
            )


def test_what_training_shows_of_a_target_is_what_these_count():
    """A seen transition has a count in the Markov chain, and what co-occurs a similarity in item-kNN; others have none."""
    dataset, index = random_dataset(users=30)
    ranking_data = from_dataset(dataset, 6)
    rows = ranking_data.rows["test"]
    markov, knn = (
        make_trivial(BaselineConfig(model=name, **options), ranking_data)(rows).numpy()[np.arange(len(rows)), rows.target]
        for name, options in (("markov", {}), ("item-knn", {"neighbours": 1000}))
    )
    lists = RankedLists.of(as_predictions(dataset.test, [np.arange(15)] * len(dataset.test), index))
    kinds = np.array(EVIDENCE)[evidence(lists, dataset)]
    backed_off = 1e-6  # what popularity adds to a score of 0 is less
    new = kinds != "repeat"
    assert ((markov > backed_off)[new] == (kinds == "seen transition")[new]).all()
    rest = new & (kinds != "seen transition")
    assert ((knn > backed_off)[rest] == (kinds == "co-occurs")[rest]).all()
    assert {"repeat", "seen transition", "co-occurs"} < set(kinds)
