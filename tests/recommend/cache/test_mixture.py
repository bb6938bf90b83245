import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from minionerec.errors import ArtifactError, DataError
from minionerec.recommend.cache import (
    BUCKETS,
    MODEL,
    Buckets,
    Interactions,
    Mixture,
    MixtureWeights,
    fit_weights,
    log_likelihood,
    made_from,
    make_components,
    mixture,
    target_probabilities,
)
from tests.examples import examples

pytestmark = pytest.mark.fast


def objective(values, buckets, weights, prior):
    """The log-likelihood, and the pseudo-counts' share of it, that EM must raise."""
    return log_likelihood(values, buckets, weights).sum() + mixture._log_prior(weights, prior)


tables = st.integers(0, 2**32 - 1).map(
    lambda seed: (rng := np.random.default_rng(seed), rng.integers(1, 40), rng.integers(2, 5), rng.integers(1, 4))
)


@given(tables)
@examples(15)
def test_every_step_of_em_raises_the_likelihood(table):
    rng, rows, components, buckets = table
    values = rng.random((rows, components)) * (rng.random((rows, components)) > 0.3) + 1e-9
    bucket = rng.integers(0, buckets, rows)
    weights = rng.dirichlet(np.ones(components), buckets)
    prior = 5 * rng.dirichlet(np.ones(components), buckets)
    reached = [objective(values, bucket, weights, prior)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mixture, "_ITERATIONS", 2)  # the second only measures what the first has gained
        for _ in range(20):
            weights = mixture._maximise(values, bucket, weights, prior)
            np.testing.assert_allclose(weights.sum(axis=1), 1)
            reached.append(objective(values, bucket, weights, prior))
    assert (np.diff(reached) >= -1e-9).all()


@given(tables)
@examples(6)
def test_weights_are_where_a_general_optimiser_finds_the_maximum(table):
    rng, rows, components, _ = table
    values = rng.random((rows, components))
    fitted = fit_weights(values, np.zeros(rows, int), bucket_count=1, pseudo_counts=0.0)

    def loss(logits):
        weights = np.exp(logits - logits.max())
        return -np.log(values @ (weights / weights.sum())).sum()

    best = min(minimize(loss, start, method="BFGS").fun for start in (np.zeros(components), rng.normal(size=components)))
    assert -log_likelihood(values, np.zeros(rows, int), fitted).sum() <= best + 1e-4


def test_a_bucket_without_rows_has_the_overall_weights_and_one_with_few_stays_near_them():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.random((400, 2)) * [1.0, 0.5], [[0.0, 0.4]], np.tile([[0.01, 0.9]], (400, 1))])
    buckets = np.repeat([0, 1, 2], [400, 1, 400])
    weights = fit_weights(values, buckets)
    overall = fit_weights(values, np.zeros(801, int), bucket_count=1)[0]
    assert weights.shape == (BUCKETS, 2)
    np.testing.assert_allclose(weights[3:], np.tile(overall, (BUCKETS - 3, 1)), rtol=1e-3)
    assert weights[0, 0] > 0.8 and weights[2, 0] < 0.05
    assert overall[1] < weights[1, 1] < (5 * overall[1] + 1) / 6 + 1e-6
    same = fit_weights(values, buckets, per_bucket=False)
    assert same.shape == (BUCKETS, 2) and (same == same[0]).all()
    np.testing.assert_allclose(same[0], overall, rtol=1e-3)
    np.testing.assert_array_equal(same, fit_weights(values, buckets[::-1], pseudo_counts=0.0, per_bucket=False))
    # A target that nothing allows says nothing about the weights.
    more = np.concatenate([values, np.zeros((50, 2))])
    np.testing.assert_array_equal(fit_weights(more, np.append(buckets, np.zeros(50, int))), weights)


@pytest.mark.parametrize(
    ("values", "buckets", "message"),
    [
        ([[0.5, np.nan]], [0], "Row 0, component 1: nan is no probability"),
        ([[0.5, 0.1], [0.2, 1.5]], [0, 0], "Row 1, component 1: 1.5 is no probability"),
        ([[0.5, -0.1]], [0], "component 1: -0.1 is no probability"),
        ([[0.5, 0.1]], [21], "Buckets from 21 to 21; expected 0 to 20"),
        ([[0.5, 0.1]], [0, 1], r"buckets \(2,\); expected"),
        ([[0.0, 0.0]], [0], "None of 1 targets has a probability above 0"),
    ],
)
def test_what_is_no_table_of_probabilities_is_refused(values, buckets, message):
    with pytest.raises(DataError, match=message):
        fit_weights(np.array(values), np.array(buckets))


@pytest.fixture(scope="module")
def parts():
    """Components of a ring of eight items, its buckets, and valid rows."""
    rng = np.random.default_rng(0)
    starts, steps = rng.integers(0, 8, 30), rng.integers(1, 3, (30, 7))
    sequences = (starts[:, None] + np.cumsum(steps, axis=1)) % 8
    interactions = Interactions(np.repeat(np.arange(30), 6), sequences[:, :6].ravel(), 9)
    vectors = np.stack([np.cos(np.arange(9)), np.sin(np.arange(9))], axis=1)
    components = make_components(("popularity", "markov", "skip", "text"), interactions, vectors)
    return components, Buckets(interactions), sequences[:, :6].tolist(), sequences[:, 6]


def test_a_mixture_is_the_weighted_sum_of_its_components(parts):
    components, buckets, histories, targets = parts
    fitted = Mixture.fit(components, buckets, histories, targets)
    weights = fitted.weights.values[buckets.of(histories)]
    expected = sum(weights[:, [n]] * c.probabilities(histories) for n, c in enumerate(components.values()))
    answers = fitted.probabilities(histories)
    np.testing.assert_allclose(answers, expected, atol=1e-15)
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    np.testing.assert_allclose(fitted.target_probabilities(histories, targets), answers[np.arange(30), targets])
    assert (fitted.share(histories) == 1).all() and (answers > 0).all()
    # It is likelier on valid than any of its components alone.
    alone = np.log(target_probabilities(components, histories, targets) + 1e-300).sum(axis=0)
    assert np.log(fitted.target_probabilities(histories, targets)).sum() > alone.max() - 1e-6
    own = np.arange(30) * 6 + 5
    left_out = fitted.probabilities([history[:5] for history in histories], own)
    rows = fitted.weights.values[buckets.of([history[:5] for history in histories], own)]
    expected = sum(
        rows[:, [n]] * c.probabilities([history[:5] for history in histories], own) for n, c in enumerate(components.values())
    )
    np.testing.assert_allclose(left_out, expected, atol=1e-15)


def test_a_model_takes_part_by_the_probabilities_of_the_targets(parts):
    components, buckets, histories, targets = parts
    model = np.random.default_rng(4).random(30)
    columns = np.column_stack([model, target_probabilities(components, histories, targets)])
    weights = MixtureWeights((MODEL, *components), fit_weights(columns, buckets.of(histories)), made_from(components))
    fitted = Mixture(components, buckets, weights)
    whole = (columns * fitted.weights.values[buckets.of(histories)]).sum(axis=1)
    share, cache = fitted.share(histories), fitted.probabilities(histories)
    np.testing.assert_allclose(cache.sum(axis=1), 1)
    np.testing.assert_allclose((1 - share) * model + share * cache[np.arange(30), targets], whole)


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
@examples(8)
def test_odds_of_a_model_leave_the_components_to_one_another(parts, times, seed):
    components, buckets = parts[:2]
    names = ("markov", MODEL, "popularity")  # in any order
    values = np.random.default_rng(seed).dirichlet(np.ones(3), BUCKETS)
    chosen = {name: components[name] for name in ("popularity", "markov")}
    whole = Mixture(chosen, buckets, MixtureWeights(names, values, made_from(chosen)))
    changed = whole.with_odds(times)
    after = changed.weights.values
    np.testing.assert_allclose(after.sum(axis=1), 1)
    np.testing.assert_allclose(after[:, 1] / (1 - after[:, 1]), times * values[:, 1] / (1 - values[:, 1]), rtol=1e-6)
    history = [[1, 2]]
    np.testing.assert_allclose(changed.probabilities(history), whole.probabilities(history))
    assert whole.with_odds(1) is whole


def test_weights_that_give_the_cache_nothing_leave_a_distribution(parts):
    components, buckets, histories, _ = parts
    values = np.zeros((BUCKETS, 5))
    values[:, 2] = 1.0
    weights = MixtureWeights(("text", "skip", MODEL, "markov", "popularity"), values, made_from(components))
    nothing = Mixture(components, buckets, weights)
    assert (nothing.share(histories) == 0).all()
    np.testing.assert_allclose(nothing.probabilities(histories).sum(axis=1), 1)


def test_weights_are_read_back_only_for_what_they_were_fitted_to(parts, tmp_path):
    components, buckets, histories, targets = parts
    fitted = Mixture.fit(components, buckets, histories, targets)
    path = tmp_path / "weights.json"
    fitted.weights.save(path)
    read = MixtureWeights.read(path, made_from(components))
    assert read.names == fitted.weights.names and read.made_from == fitted.weights.made_from
    np.testing.assert_array_equal(read.values, fitted.weights.values)
    np.testing.assert_array_equal(Mixture(components, buckets, read).probabilities(histories), fitted.probabilities(histories))
    other = Interactions(np.zeros(3, int), np.array([0, 1, 2]), 9)
    changed = make_components(("popularity", "markov", "skip", "text"), other, np.eye(9))
    with pytest.raises(ArtifactError, match=r"another component text, interactions than here. Fit the weights again"):
        MixtureWeights.read(path, made_from(changed))
    content = json.loads(path.read_text())
    content["weights"][0][0] += 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="damaged; its content does not match its digest"):
        MixtureWeights.read(path, made_from(components))
    path.write_text("[]")
    with pytest.raises(ArtifactError, match="no weights of a mixture"):
        MixtureWeights.read(path, made_from(components))
    with pytest.raises(DataError, match="Weights for popularity"):
        Mixture({"popularity": components["popularity"]}, buckets, fitted.weights)
