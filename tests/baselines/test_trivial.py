import numpy as np
import pytest

from minionerec.baselines.ranking import rank_split
from minionerec.baselines.ranking_data import from_dataset, from_sequences
from minionerec.baselines.trivial import ItemKNN, ItemKNNOptions, RepeatLast, make_trivial, popularity, repeat_last
from minionerec.config import BaselineConfig
from minionerec.errors import ConfigError
from tests.small import SEQUENCES, leave_one_out


def test_popularity_ranks_by_count_then_index_for_every_row():
    dataset = leave_one_out(SEQUENCES, 6, 20)
    rankings = popularity(dataset, 50)
    assert [ranking.tolist() for ranking in rankings] == [[2, 3, 4, 0, 1, 5]] * 3
    assert popularity(dataset, 2)[0].tolist() == [2, 3]
    assert len(popularity(dataset, 2, split="train")) == len(dataset.train)


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
