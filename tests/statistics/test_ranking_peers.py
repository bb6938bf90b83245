"""Agreement with ir-measures and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from minionerec.eval.metrics import ranks
from minionerec.statistics.ranking import hit_rate, mrr, ndcg
from tests.eval.samples import random_predictions

PREDICTIONS = random_predictions(users=60, length=200)


@pytest.mark.parametrize("k", [1, 3, 5, 10, 20])
def test_ir_measures(k):
    ir = pytest.importorskip("ir_measures")
    qrels = {example.user: {str(example.target_sid): 1} for example in PREDICTIONS}
    run = {example.user: {str(sid): -float(rank) for rank, sid in enumerate(example.sids)} for example in PREDICTIONS}
    theirs = ir.calc_aggregate([ir.Success @ k, ir.nDCG @ k, ir.RR @ k], qrels, run)
    target_ranks = ranks(PREDICTIONS)
    assert hit_rate(target_ranks, k) == pytest.approx(theirs[ir.Success @ k])
    assert ndcg(target_ranks, k) == pytest.approx(theirs[ir.nDCG @ k])
    assert mrr(target_ranks, k) == pytest.approx(theirs[ir.RR @ k])


@pytest.mark.parametrize("k", [1, 3, 10, 20])
def test_scikit_learn(k):
    rng = np.random.default_rng(0)
    scores, targets = rng.random((50, 30)), rng.integers(0, 30, 50)
    target_ranks = (scores > scores[np.arange(50), targets][:, None]).sum(axis=1).astype(float)
    assert hit_rate(target_ranks, k) == pytest.approx(top_k_accuracy_score(targets, scores, k=k, labels=np.arange(30)))
    relevance = np.eye(30)[targets]
    assert ndcg(target_ranks, k) == pytest.approx(ndcg_score(relevance, scores, k=k))
    assert math.isclose(mrr(target_ranks, 30), np.mean(1 / (target_ranks + 1)))
