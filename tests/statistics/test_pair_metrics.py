import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import f1_score, label_ranking_average_precision_score, ndcg_score, roc_auc_score

from minionerec.statistics.pair_metrics import ScoredPairs, auc, f1, log_loss, per_user, probabilities
from tests.examples import examples

pytestmark = pytest.mark.fast

# Few distinct scores, so that ties are frequent.
USERS = st.lists(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0])), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


def pairs_of(users):
    numbers = [user for user, rows in enumerate(users) for _ in rows]
    labels, scores = zip(*(row for rows in users for row in rows), strict=True)
    return ScoredPairs(np.array(numbers), np.array(labels), np.array(scores))


def judged(users):
    return [rows for rows in users if len({label for label, _ in rows}) == 2]


def orders(rows):
    """The labels of every order of a user's candidates in which scores fall."""
    for order in itertools.permutations(rows):
        if all(a[1] >= b[1] for a, b in itertools.pairwise(order)):
            yield [label for label, _ in order]


def literal(rows):
    """The metrics of one user as means over all orders."""
    listed = list(orders(rows))
    total = sum(listed[0])
    values = {
        "MRR-mean": [sum(y / r for r, y in enumerate(labels, 1)) / total for labels in listed],
        "MRR-first": [1 / (labels.index(1) + 1) for labels in listed],
        **{f"Recall@{k}": [sum(labels[:k]) / total for labels in listed] for k in (1, 5)},
        **{f"HitRatio@{k}": [float(any(labels[:k])) for labels in listed] for k in (1, 5)},
    }
    return {name: float(np.mean(figures)) for name, figures in values.items()}


@examples(40)
@given(users=USERS)
def test_per_user_metrics_equal_scikit_learn_and_the_mean_over_all_orders(users):
    figures = per_user(pairs_of(users), cutoffs=(1, 5))
    assert all(len(values) == len(judged(users)) for values in figures.values())
    for place, rows in enumerate(judged(users)):
        labels, scores = ([row[n] for row in rows] for n in (0, 1))
        expected = {
            "GAUC": roc_auc_score(labels, scores),
            "NDCG@1": ndcg_score([labels], [scores], k=1),
            "NDCG@5": ndcg_score([labels], [scores], k=5),
            "LRAP": label_ranking_average_precision_score([labels], [scores]),
            **literal(rows),
        }
        assert set(expected) == set(figures)
        assert {name: values[place] for name, values in figures.items()} == pytest.approx(expected, abs=1e-9)


@examples(40)
@given(users=USERS)
def test_a_tied_like_loses_where_dislikes_come_first(users):
    figures = per_user(pairs_of(users), cutoffs=(1, 5), ties="last")
    for place, rows in enumerate(judged(users)):
        labels = [label for label, _ in sorted(sorted(rows), key=lambda row: -row[1])]  # stable, dislikes first
        total = sum(labels)
        ranks = [r for r, label in enumerate(labels, 1) if label]
        ideal = sum(1 / math.log2(r + 1) for r in range(1, min(total, 5) + 1))
        assert figures["NDCG@5"][place] == pytest.approx(sum(1 / math.log2(r + 1) for r in ranks if r <= 5) / ideal)
        assert figures["LRAP"][place] == pytest.approx(np.mean([n / r for n, r in enumerate(ranks, 1)]))
        assert figures["GAUC"][place] == pytest.approx(roc_auc_score(*zip(*rows, strict=True)))
        assert figures["MRR-first"][place] == pytest.approx(1 / ranks[0])
        assert figures["HitRatio@1"][place] == labels[0]


@examples(40)
@given(users=USERS, seed=st.integers(0, 9))
def test_pooled_metrics_equal_scikit_learn_on_resampled_rows(users, seed):
    pairs = pairs_of(users)
    weights = np.random.default_rng(seed).multinomial(len(users), np.full(len(users), 1 / len(users)), size=3)
    curves, f1s = auc(pairs, weights), f1(pairs, weights)
    for draw, curve, value in zip(weights, curves, f1s, strict=True):
        rows = np.repeat(np.arange(len(pairs.users)), draw[pairs.users])  # real resampling: the rows of each drawn user
        labels, scores = pairs.labels[rows], pairs.scores[rows]
        if len(set(labels)) == 2:
            assert curve == pytest.approx(roc_auc_score(labels, scores))
        else:
            assert np.isnan(curve)
        assert value == pytest.approx(f1_score(labels, scores >= 0, zero_division=0.0))
    assert log_loss(pairs).mean() == pytest.approx(sklearn_metrics.log_loss(pairs.labels, probabilities(pairs), labels=[0, 1]))


def test_closed_forms():
    rng = np.random.default_rng(0)
    users, labels = np.repeat(np.arange(50), 6), np.tile([1, 0, 0, 1, 0, 0], 50)
    constant = ScoredPairs(users, labels, np.zeros(300))
    assert auc(constant)[0] == 0.5 and (per_user(constant)["GAUC"] == 0.5).all()
    perfect = ScoredPairs(users, labels, labels + rng.uniform(0, 0.9, 300))
    assert auc(perfect)[0] == 1
    assert all((values == 1).all() for name, values in per_user(perfect).items() if name not in ("Recall@1", "MRR-mean"))
    noisy = ScoredPairs(users, labels, labels + rng.normal(0, 1, 300))
    shifted = ScoredPairs(users, labels, noisy.scores + np.repeat(rng.normal(0, 5, 50), 6))
    for name, values in per_user(noisy).items():  # lists of single users do not care about what a user adds to all scores
        np.testing.assert_allclose(per_user(shifted)[name], values)
    assert abs(auc(shifted)[0] - auc(noisy)[0]) > 0.05


def test_users_of_one_label_are_not_judged():
    pairs = ScoredPairs(np.array([0, 0, 1, 1, 2]), np.array([1, 1, 0, 1, 0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert pairs.judged.tolist() == [False, True, False] and per_user(pairs)["GAUC"].tolist() == [1.0]
