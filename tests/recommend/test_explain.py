import numpy as np
import pytest

from minionerec.errors import DataError
from minionerec.recommend.filters import ItemFilter

HISTORY = ["i0", "i5", "i7"]


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
@pytest.mark.parametrize("filters", [{}, {"deny": ["i1", "i2", "i3"], "exclude_history": True}, {"allow": ["i4", "i11"]}])
def test_the_probabilities_along_a_path_add_up_to_the_scores_of_the_list(make, normalise_over, filters):
    recommender = make(normalise_over=normalise_over)
    for beams in (2, 20):
        explanation = recommender.explain(HISTORY, k=2, num_beams=beams, **filters)
        [recommendation] = recommender.recommend([HISTORY], k=2, num_beams=beams, **filters)
        assert explanation.recommendation == recommendation and explanation.normalise_over == normalise_over
        sums = {}
        for path in explanation.root.walk():
            assert path[-1].score == pytest.approx(sum(node.logprob for node in path), abs=1e-5)
            if len(path) == 1 + recommender.trie.depth:
                sums["".join(node.token for node in path)] = path
        assert len(sums) == explanation.root.beams == len([path for path in explanation.root.walk() if not path[-1].children])
        for item in recommendation.items:
            path = sums[item.sid]
            assert sum(node.logprob for node in path) == pytest.approx(item.score, abs=1e-5)
            assert all(item.place in node.places for node in path) and item.title in path[-1].titles
            assert path[-1].items == 1 + item.tied


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
def test_children_and_what_is_pruned_are_all_that_is_legal(make, normalise_over):
    """Against a search as wide as the catalog, whose tree holds every prefix."""
    recommender = make(normalise_over=normalise_over)
    whole = {
        tuple(node.token for node in path): path[-1]
        for path in recommender.explain(HISTORY, k=20, num_beams=20, deny=["i9"]).root.walk()
    }
    assert not any(node.pruned for node in whole.values()) and whole["",].items == 19
    for path in recommender.explain(HISTORY, k=3, num_beams=3, deny=["i9"]).root.walk():
        node, complete = path[-1], whole[tuple(node.token for node in path)]
        kept = {child.token for child in node.children}
        rest = [child.score for child in complete.children if child.token not in kept]
        assert node.pruned == len(rest) and (node.best_pruned is None) == (not rest)
        assert node.best_pruned is None or node.best_pruned == pytest.approx(max(rest), abs=1e-5)
        assert (node.items, node.score) == (complete.items, pytest.approx(complete.score, abs=1e-5))
        assert node.beams == sum(not below[-1].children and len(below) + len(path) == 5 for below in node.walk())
        if normalise_over == "catalog" and complete.children:
            assert np.exp([child.logprob for child in complete.children]).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "item_filter",
    [
        ItemFilter(),
        ItemFilter(listed=np.array([2, 3, 19])),
        ItemFilter(hidden=frozenset([0, 7])),
        ItemFilter(mask=np.arange(20) % 3 > 0, hidden=frozenset([1])),
    ],
)
def test_many_items_pass_as_each_alone_does(item_filter):
    items = np.arange(20)[::-1].astype(np.int32)
    assert items[item_filter.passes(items)].tolist() == item_filter.passing(items.tolist())


def test_an_empty_history_has_no_search(recommender):
    with pytest.raises(DataError, match="The history is empty: its list is the popularity list"):
        recommender.explain([])
