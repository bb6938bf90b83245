"""What counts, text neighbours and a trained baseline know of the next item: distributions over the catalog.

`components` has one class per source of knowledge, `mixture` weighs them. The baselines `skip`, `text` and `mixture`, the
evaluation, the Recommender and SFT all use these objects, so that a cache means the same everywhere.

    interactions = Interactions.of_dataset(dataset)
    components = make_components(("popularity", "markov", "skip", "item-knn"), interactions)
    mixture = Mixture.fit(components, Buckets(interactions), histories_of_valid, targets_of_valid)
    mixture.probabilities([[3, 17], []])  # (2, items), rows add up to 1
"""

from minionerec.recommend.cache.buckets import BUCKETS, Buckets
from minionerec.recommend.cache.components import (
    COMPONENTS,
    COUNTS,
    UNTRAINED,
    Component,
    ItemKNN,
    Markov,
    Popularity,
    Sequential,
    Skip,
    TextNeighbours,
    make_components,
)
from minionerec.recommend.cache.interactions import NOTHING, Interactions, own_interactions
from minionerec.recommend.cache.mixture import (
    MODEL,
    Mixture,
    MixtureWeights,
    fit_weights,
    log_likelihood,
    made_from,
    target_probabilities,
)
from minionerec.recommend.cache.sequential import HistoryScorer

__all__ = [
    "BUCKETS",
    "COMPONENTS",
    "COUNTS",
    "MODEL",
    "NOTHING",
    "UNTRAINED",
    "Buckets",
    "Component",
    "HistoryScorer",
    "Interactions",
    "ItemKNN",
    "Markov",
    "Mixture",
    "MixtureWeights",
    "Popularity",
    "Sequential",
    "Skip",
    "TextNeighbours",
    "fit_weights",
    "log_likelihood",
    "made_from",
    "make_components",
    "own_interactions",
    "target_probabilities",
]
