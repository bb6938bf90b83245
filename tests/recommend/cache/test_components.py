import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec.errors import ConfigError, DataError
from minionerec.recommend.cache import (
    COMPONENTS,
    COUNTS,
    NOTHING,
    UNTRAINED,
    Buckets,
    HistoryScorer,
    Interactions,
    ItemKNN,
    Markov,
    Popularity,
    Sequential,
    Skip,
    TextNeighbours,
    components,
    make_components,
    own_interactions,
)
from tests.examples import examples
from tests.recommend.cache.literal import Counted
from tests.small import SEQUENCES, leave_one_out, random_dataset

pytestmark = pytest.mark.fast
ITEMS = 6
VECTORS = [[1.0, 0.2], [0.3, 1.0], [-1.0, 0.5], [0.0, 0.0], [1.0, 0.21], [2.0, 0.4]]


def interactions_of(sequences, catalog=ITEMS):
    users = np.repeat(np.arange(len(sequences)) * 3 + 1, [len(sequence) for sequence in sequences])
    return Interactions(users, np.concatenate([np.array(sequence) for sequence in sequences]), catalog)


def literals(counted):
    """Each component's distribution by its definition, and the component."""
    return {
        "popularity": (Popularity, {}, counted.popularity),
        "markov": (Markov, {}, counted.markov),
        "skip": (Skip, {}, counted.skip),
        "item-knn": (ItemKNN, {}, counted.item_knn),
        "two nearest": (
            ItemKNN,
            {"neighbours": 2, "shrinkage": 0.5},
            lambda history: counted.item_knn(history, neighbours=2, shrinkage=0.5),
        ),
        "text": (TextNeighbours, {"vectors": np.array(VECTORS)}, lambda history: counted.text(history, VECTORS)),
    }


sequences = st.lists(st.lists(st.integers(0, ITEMS - 2), min_size=1, max_size=7), min_size=1, max_size=5)
any_history = st.lists(st.integers(0, ITEMS - 1), max_size=7)
KINDS = list(literals(Counted([[0]], ITEMS)))


@pytest.mark.parametrize("kind", KINDS)
@given(sequences=sequences, histories=st.lists(any_history, min_size=1, max_size=4))
@examples(15)
def test_each_component_is_what_its_definition_says(kind, sequences, histories):
    make, options, literal = literals(Counted(sequences, ITEMS))[kind]
    component = make(interactions_of(sequences), **options)
    answers = component.probabilities(histories)
    np.testing.assert_allclose(answers, [literal(history) for history in histories], atol=1e-6)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-12)
    assert answers.dtype == np.float64 and (answers >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), sequences=sequences)
@examples(30)
def test_leaving_a_row_out_equals_counting_without_it(kind, data, sequences):
    places = [(user, place) for user, sequence in enumerate(sequences) for place in range(len(sequence))]
    starts = np.cumsum([0, *map(len, sequences)])
    rows = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4))
    histories, own = [], []
    for user, place in rows:
        # A row's own history, as long as it was cut, or one that is not its own at all.
        cut = data.draw(st.integers(0, place))
        histories.append(data.draw(st.one_of(st.just(sequences[user][cut:place]), any_history)))
        own.append(data.draw(st.sampled_from([int(starts[user]) + place] * 3 + [NOTHING])))
    make, options, _ = literals(Counted(sequences, ITEMS))[kind]
    answers = make(interactions_of(sequences), **options).probabilities(histories, np.array(own))
    for answer, history, number in zip(answers, histories, own, strict=True):
        literal = literals(Counted(sequences, ITEMS, without=number))[kind][2](history)
        np.testing.assert_allclose(answer, literal, atol=1e-6)
        assert ((answer == 0) == (np.array(literal) == 0)).all()  # nothing is left of what only the row itself knew


@given(data=st.data(), sequences=sequences)
@examples(30)
def test_buckets_count_what_followed_the_last_item(data, sequences):
    buckets = Buckets(interactions_of(sequences))
    histories = data.draw(st.lists(any_history, min_size=1, max_size=4))
    assert buckets.of(histories).tolist() == [Counted(sequences, ITEMS).bucket(history) for history in histories]
    number = data.draw(st.integers(0, sum(map(len, sequences)) - 1))
    own = np.full(len(histories), number)
    without = Counted(sequences, ITEMS, without=number)
    assert buckets.of(histories, own).tolist() == [without.bucket(history) for history in histories]


def test_the_rows_of_a_dataset_name_their_own_interactions():
    for dataset in (leave_one_out(SEQUENCES, 6, 20), random_dataset()[0]):
        interactions, own = Interactions.of_dataset(dataset), own_interactions(dataset)
        assert len(own) == len(dataset.train) and len(set(own.tolist())) == len(own)
        assert interactions.items[own].tolist() == dataset.train["target"].to_list()
        before = interactions.before(own, 1).tolist()
        assert before == [history[-1] for history in dataset.train["history"].to_list()]
        assert interactions.users[0] == 0 and set(np.diff(interactions.users)) <= {0, 1}


def test_of_many_targets_each_is_what_the_whole_distribution_says(monkeypatch):
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 5, 6).tolist() for _ in range(8)]
    histories, targets, own = [s[:5] for s in sequences], np.array([s[5] for s in sequences]), np.arange(8) * 6 + 5
    monkeypatch.setattr(components, "_CELLS", 3 * ITEMS)  # three rows at once
    for component in make_components(UNTRAINED, interactions_of(sequences), np.array(VECTORS)).values():
        expected = component.probabilities(histories, own)[np.arange(8), targets]
        np.testing.assert_allclose(component.target_probabilities(histories, targets, own), expected, atol=1e-15)


def test_a_catalog_too_large_for_all_softmaxes_gets_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    vectors, histories = rng.normal(size=(ITEMS, 4)), [[0, 1, 2], [3], [], [5, 5, 4, 3, 2, 1]]
    kept = TextNeighbours(interactions_of([[0, 1]]), vectors).probabilities(histories)
    monkeypatch.setattr(components, "_KERNEL", 1)
    np.testing.assert_array_equal(TextNeighbours(interactions_of([[0, 1]]), vectors).probabilities(histories), kept)


def test_items_of_one_text_have_one_score_to_the_last_bit():
    vectors = np.random.default_rng(0).normal(size=(701, 33)).astype(np.float32)
    vectors[350:700] = vectors[:350]  # at other places of the product than their twins
    text = TextNeighbours(interactions_of([[0, 1]], 701), vectors)
    scores = text.scores([np.array([700]), np.array([3, 700])])
    np.testing.assert_array_equal(scores[0, 350:700], scores[0, :350])
    twins = np.delete(np.arange(350), 3)
    np.testing.assert_array_equal(scores[1, twins + 350], scores[1, twins])
    assert scores[1, 3] < scores[1, 353]  # an item is no neighbour of itself, but its twin is


def scorer_of(score):
    return HistoryScorer("sasrec", "of its weights", lambda histories: np.array([score(h) for h in histories], np.float32))


def last_item(history):
    """Scores that would overflow without their maximum taken off."""
    return [1000.0 - abs(item - int(history[-1])) / len(history) for item in range(ITEMS)]


def test_a_trained_baseline_says_the_softmax_of_its_scores():
    interactions = interactions_of([[0, 1, 1, 3]])
    component = Sequential(interactions, scorer_of(last_item))
    histories = [[2], [], np.array([0, 4, 1])]
    answers = component.probabilities(histories)
    for row in (0, 2):
        logits = np.array(last_item(histories[row]), np.float32).astype(float)
        np.testing.assert_allclose(answers[row], np.exp(logits - 1000) / np.exp(logits - 1000).sum(), rtol=1e-12)
    assert answers.dtype == np.float64 and answers[0].argmax() == 2
    np.testing.assert_array_equal(answers[1], Popularity(interactions).probabilities([[]])[0])
    np.testing.assert_array_equal(component.probabilities([[]]), answers[1:2])
    np.testing.assert_allclose(component.target_probabilities(histories, np.array([3, 1, 5])), answers[range(3), [3, 1, 5]])
    np.testing.assert_array_equal(component.probabilities(histories, np.full(3, NOTHING)), answers)
    with pytest.raises(DataError, match="sasrec was trained on all training rows: none can be left out"):
        component.probabilities(histories, np.array([NOTHING, NOTHING, 2]))
    with pytest.raises(DataError, match=r"holds item 6; the catalog has 6"):
        component.probabilities([[6]])
    for wrong in (np.nan, np.inf, -np.inf):
        diverged = Sequential(interactions, scorer_of(lambda history, wrong=wrong: [0.0, wrong, *[1.0] * (ITEMS - 2)]))
        with pytest.raises(DataError, match=r"baseline sasrec gives scores that are not finite.*minionerec baseline"):
            diverged.probabilities([[0]])


def test_a_single_item_has_no_neighbour():
    component = TextNeighbours(Interactions(np.array([0]), np.array([0]), 1), np.ones((1, 2)))
    assert component.probabilities([[0], []]).tolist() == [[1.0], [1.0]]


def test_settings_name_what_an_answer_depends_on():
    interactions = interactions_of([[0, 1, 2]])
    made = make_components(COMPONENTS, interactions, np.array(VECTORS), scorer_of(last_item))
    assert list(made) == list(COMPONENTS) and COMPONENTS[:-2] == COUNTS and COMPONENTS[:-1] == UNTRAINED
    assert made["sequential"].settings == {"baseline": "sasrec", "digest": "of its weights"}
    assert made["skip"].settings == {"gap_weights": [1.0, 0.5, 0.33], "last": 5, "decay": 0.6}
    other = TextNeighbours(interactions, np.array(VECTORS)[::-1])
    assert made["text"].settings["vectors"] != other.settings["vectors"]
    assert interactions.digest == Interactions(np.array([7, 7, 7]), np.array([0, 1, 2]), ITEMS).digest
    assert interactions.digest != Interactions(np.array([0, 0, 1]), np.array([0, 1, 2]), ITEMS).digest


def test_mistakes_are_named():
    interactions = interactions_of([[0, 1, 2], [1, 1]])
    with pytest.raises(DataError, match=r"holds item.* 6.*catalog has 6"):
        Skip(interactions).probabilities([[0, 6]])
    with pytest.raises(DataError, match=r"holds items 0 to 6.*catalog has 6"):
        ItemKNN(interactions).probabilities([[0, 6]])
    with pytest.raises(DataError, match=r"own names interactions 0 to 5; expected 0 to 4"):
        Markov(interactions).probabilities([[0], [0]], np.array([0, 5]))
    with pytest.raises(DataError, match=r"own has shape \(1,\).*\(2,\)"):
        Buckets(interactions).of([[0], [0]], np.array([0]))
    with pytest.raises(DataError, match=r"Item vectors of shape \(5, 2\); expected \(6, dimensions\)"):
        TextNeighbours(interactions, np.array(VECTORS)[:5])
    with pytest.raises(DataError, match=r"Interaction 1: item 6, expected 0 to 5"):
        Interactions(np.array([0, 0]), np.array([0, 6]), 6)
    with pytest.raises(DataError, match="0 training interactions"):
        Interactions(np.array([], int), np.array([], int), 6)
    with pytest.raises(ConfigError, match="text needs item vectors"):
        make_components(("popularity", "text"), interactions)
    with pytest.raises(ConfigError, match="sequential needs a trained baseline"):
        make_components(("sequential",), interactions, np.array(VECTORS))
    for names in ((), ("markov", "markov"), ("markow",)):
        with pytest.raises(ConfigError, match="expected one or several of popularity"):
            make_components(names, interactions)
