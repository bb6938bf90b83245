import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minionerec.errors import TrainingError
from minionerec.training.ranking import candidates, rank_split, ranked, ranking_metrics, target_ranks
from minionerec.training.ranking_data import PROTOCOLS, RankingData
from tests.examples import examples
from tests.model.sequential.models import rows_of

scores_of = st.lists(
    st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 0.5001, 2.0]), min_size=8, max_size=8), min_size=1, max_size=5
)


@examples(100)
@given(scores_of, st.integers(1, 10))
def test_ranks_and_lists_are_those_of_a_stable_sort(values, top):
    scores = torch.tensor(values)
    lists = ranked(scores, top)
    for row, own in enumerate(values):
        order = [item for item in sorted(range(8), key=lambda item: (-own[item], item)) if own[item] > -math.inf]
        assert lists[row].tolist() == order[:top]
        for target in range(8):
            expected = order.index(target) if target in order else math.inf
            ranks, ties = target_ranks(scores[row : row + 1], torch.tensor([target]), expects_ties=False)
            assert (ranks.tolist(), ties.tolist()) == ([expected], [1])


@examples(40)
@given(st.lists(st.sampled_from([-math.inf, 0.0, 0.5, 2.0]), min_size=6, max_size=6), st.integers(0, 5))
def test_ties_count_as_the_mean_over_all_orders(own, target):
    ranks, ties = target_ranks(torch.tensor([own]), torch.tensor([target]), expects_ties=True)
    orders = []
    for places in itertools.permutations(range(6)):
        order = [item for item in sorted(range(6), key=lambda item: (-own[item], places[item])) if own[item] > -math.inf]
        orders.append(order.index(target) if target in order else math.inf)
    expected = ranking_metrics(np.array(orders), np.ones(len(orders)))
    assert ranking_metrics(ranks, ties) == pytest.approx(expected, abs=1e-12)


def test_protocols_treat_padding_and_history_as_they_say():
    rows = rows_of([[2, 3], [4]])
    rows = dataclasses.replace(rows, seen=np.array([0, 0]))  # the second user's whole history is 2 3 4, of which it reads 4
    scores = torch.arange(1.0, 7.0).repeat(2, 1)
    visible = candidates(scores.clone(), rows, PROTOCOLS["recbole"])
    assert visible[0].tolist() == [-math.inf, 2, 3, 4, 5, 6]
    hidden = candidates(scores.clone(), rows, PROTOCOLS["wearec"])
    assert hidden.tolist() == [[1, 2, 0, 0, 5, 6], [1, 2, 0, 0, 0, 6]]


def data_of(protocol: str) -> RankingData:
    rows = rows_of([[1, 2], [3], [5, 1, 1]], [4, 2, 5])
    return RankingData(5, ["a", "b", "c"], {"train": rows, "valid": rows, "test": rows}, rows, PROTOCOLS[protocol])


def test_a_whole_split_is_ranked_in_order():
    ranking = rank_split(lambda rows: torch.tensor([0.0, 5, 4, 3, 2, 1]).repeat(len(rows), 1), data_of("dataset"), "test", 3)
    assert (ranking.ranks.tolist(), ranking.ties.tolist()) == ([3, 1, 4], [1, 1, 1]) and [
        ids.tolist() for ids in ranking.lists
    ] == [[1, 2, 3]] * 3


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(TrainingError, match=r"training diverged. Lower its learning_rate"):
        rank_split(lambda rows: torch.full((len(rows), 6), torch.nan), data_of("dataset"), "test")


def test_ranks_without_the_history_are_those_of_lists_without_it():
    data = data_of("dataset")
    scores = torch.tensor([0.0, 5, 4, 3, 2, 1])
    kept, both = (rank_split(lambda rows: scores.repeat(len(rows), 1), data, "test", 5, left_out) for left_out in (False, True))
    assert kept.left_out is None and both.ranks.tolist() == kept.ranks.tolist()
    assert [ids.tolist() for ids in both.lists] == [ids.tolist() for ids in kept.lists]
    rows = data.rows["test"]
    for row, target in enumerate(rows.target):
        rest = [item for item in kept.lists[row].tolist() if item not in rows.history(row)]
        assert both.left_out[row] == (rest.index(target) if target in rest else math.inf)
    assert both.left_out.tolist() == [1, 1, math.inf]  # the third target is in its history


def test_hidden_items_leave_the_ties_and_published_protocols_have_none():
    """Items 1, 2, 4 and 5 tie; the rows' targets are 4, 2 and 5, their histories 1 2, 3 and 5 1 1."""
    scores = torch.tensor([0.0, 5, 5, 7, 5, 5])
    ranking = rank_split(lambda rows: scores.repeat(len(rows), 1), data_of("dataset"), "test", 2, left_out=True)
    assert (ranking.ranks.tolist(), ranking.ties.tolist()) == ([1] * 3, [4] * 3)
    assert (ranking.left_out.tolist(), ranking.left_out_ties.tolist()) == ([1, 0, math.inf], [2, 4, 1])
    published = rank_split(lambda rows: scores.repeat(len(rows), 1), data_of("recbole"), "test", 2)
    assert (published.ranks.tolist(), published.ties.tolist()) == ([3, 2, 4], [1] * 3)
