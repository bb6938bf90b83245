"""A cache mixed into a trained model's lists: what its components give each SID, beside what the model gives it.

After history h a SID has the probability `(1 - l(h)) p_model + l(h) p_cache`, and `p_cache` is a weighted sum of components
(`recommend.cache`). Where filters leave a part of the catalog, each component is zeroed outside and divided by what remains, as
the model's steps are; a component of which nothing remains hands its weight to the others, and the cache to the model if
nothing remains of any.

Imported only where a mixture is asked for: the counts need scipy, and recommending without them does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file

from minionerec.artifacts import Manifest, require
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import stored_baseline
from minionerec.errors import ArtifactError
from minionerec.recommend.cache import (
    MODEL,
    Buckets,
    Component,
    Interactions,
    Mixture,
    MixtureWeights,
    make_components,
)
from minionerec.recommend.cache.interactions import Histories
from minionerec.recommend.cache.mixture import fit_weights, made_from
from minionerec.recommend.cache.sequential import checked_scorer, scorer_of_run
from minionerec.recommend.cache.vectors import vectors_of_run
from minionerec.tree import CatalogTrie, Prior, score_leaves

if TYPE_CHECKING:
    from minionerec.recommend.recommender import Recommender

WEIGHTS, VECTORS = "weights.json", "vectors.safetensors"  # in `mixture/<stage>` of a run
COMMAND = "minionerec mixture"
# What the model keeps in every mixture: EM may drive its weight to 0, and then an item that no component knows had no
# probability, so that lists would lack it. It costs 1e-9 nats a row.
LEAST_SHARE = 1e-9


def components_of(config: Config, dataset: Dataset) -> dict[str, Component]:
    """The components that a configuration names, counted from a dataset.

    Raises:
        ArtifactError: the baseline of `sequential` is missing, damaged or of other data.
        ConfigError: the encoder of `text` cannot be loaded.
        DataError: the dataset has no training interaction, or an item has no text.
    """
    names, baseline = config.mixture.components, config.mixture.sequential
    vectors = vectors_of_run(config, dataset) if "text" in names else None
    scorer = None if baseline is None else scorer_of_run(config.folder, baseline, len(dataset.catalog))
    return dict(make_components(names, Interactions.of_dataset(dataset), vectors, scorer))


def require_mixture(run: Path, stage: str, inputs: Mapping[str, str]) -> tuple[Manifest, Manifest | None]:
    """The manifests of a run's mixture for a model, and of the trained baseline in it, None if it has none.

    Args:
        stage: of the model, `sft` or `rl`.
        inputs: digests of data, SIDs and the model, by name.

    Raises:
        ArtifactError: the run has no mixture for this model, it is damaged, or it was fitted to another model, other data,
            other SIDs or another baseline.
    """
    manifest = require(run / "mixture" / stage, COMMAND, made_from=inputs)
    baseline = manifest.config["mixture"].get("sequential")  # earlier versions had none
    if baseline is None:
        return manifest, None
    name, stored = f"baselines/{baseline}", stored_baseline(run, baseline, inputs["data"])
    if manifest.inputs[name] != stored.digest:
        raise ArtifactError(
            f"{run / 'mixture' / stage}: was fitted with another {name} than the run has now, which was trained again. Fit it "
            f"again: {COMMAND} (same --config and options)."
        )
    return manifest, stored


def load_cache(run: Path, stage: str, dataset: Dataset, inputs: Mapping[str, str]) -> tuple[Mixture, str]:
    """The cache of a run's model with its weights, and the artefact's digest.

    Args:
        stage: of the model, `sft` or `rl`.
        inputs: digests of data, SIDs and the model, by name.

    Raises:
        ArtifactError: as `require_mixture`, or what it needs of the baseline does not fit.
    """
    folder = run / "mixture" / stage
    manifest, baseline = require_mixture(run, stage, inputs)
    settings = manifest.config["mixture"]
    names = settings["components"]
    vectors = load_file(folder / VECTORS)["vectors"] if "text" in names else None
    scorer = None
    if baseline is not None:
        scorer = checked_scorer(run / "baselines" / settings["sequential"], baseline, len(dataset.catalog))
    interactions = Interactions.of_dataset(dataset)
    components = make_components(names, interactions, vectors, scorer)
    weights = MixtureWeights.read(folder / WEIGHTS, made_from(components), f"Run {COMMAND} again.")
    return Mixture(components, Buckets(interactions), weights), manifest.digest


def component_leaves(component: Component, histories: Sequence[Sequence[int]], trie: CatalogTrie) -> torch.Tensor:
    """What a component gives each SID of the trie, or of what a view of it leaves: (batch, SIDs) float64 on its device.

    Rows add up to 1; a row of which a view leaves nothing is zeros.
    """
    items = torch.from_numpy(component.probabilities(histories)).to(trie.device)
    return Prior.of_items(trie, items, items.new_ones(len(items))).within(trie).leaves


def cache_prior(cache: Mixture, histories: Sequence[Sequence[int]], trie: CatalogTrie) -> Prior:
    """What a cache mixes into a search.

    Args:
        histories: item indices, oldest first, one per request.
        trie: of the search, with its view.
    """
    leaves = torch.zeros(len(histories), len(trie), dtype=torch.float64, device=trie.device)
    for _, part in _weighted(cache, histories, trie):
        leaves += part
    total = leaves.sum(1)
    share = torch.where(total > 0, torch.from_numpy(cache.share(histories)).to(trie.device), 0.0)
    return Prior(leaves / torch.where(total > 0, total, 1.0)[:, None], share)


def cache_parts(
    cache: Mixture, history: Sequence[int], trie: CatalogTrie, leaves: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """The share of the cache after one history, and what each component adds to the probability of some SIDs.

    Args:
        trie: of the search, with its view.
        leaves: (SIDs,) numbers of SIDs in the trie.

    Returns:
        the share, 0 if a view leaves nothing of any component; and name to (SIDs,) float64.
    """
    parts = dict(_weighted(cache, [history], trie))
    total = sum(float(part.sum()) for part in parts.values())
    share = float(cache.share([history])[0]) if total else 0.0
    return share, {name: part[0, leaves] * (share / (total or 1.0)) for name, part in parts.items()}


def _weighted(cache: Mixture, histories: Sequence[Sequence[int]], trie: CatalogTrie) -> Iterator[tuple[str, torch.Tensor]]:
    """Each component's name and leaves, times its weight among the components."""
    weights = torch.from_numpy(cache.weights_of(histories)).to(trie.device)
    for number, (name, component) in enumerate(cache.components.items()):
        yield name, component_leaves(component, histories, trie) * weights[:, number, None]


def model_column(recommender: "Recommender", histories: Sequence[Sequence[int]], targets: Sequence[int]) -> np.ndarray:
    """The model's probability of each target's SID over the catalog, (rows,) float64, without a search.

    With `exclude_history` it is that over the catalog without the history, and 0 for a target in it.
    """
    values = []
    for part, trie, leaves in _batches(recommender, histories, targets):
        scores = score_leaves(recommender.model, *recommender.encode(part), trie=trie, leaves=leaves, normalise_over="catalog")
        values.append(scores[:, 0].double().exp().cpu().numpy())
    return np.concatenate(values)


def component_columns(
    recommender: "Recommender",
    components: Mapping[str, Component],
    histories: Sequence[Sequence[int]],
    targets: Sequence[int],
) -> np.ndarray:
    """What each component gives each target's SID, (rows, components) float64; views as in `model_column`."""
    values = []
    for part, trie, leaves in _batches(recommender, histories, targets):
        columns = [component_leaves(component, part, trie).gather(1, leaves) for component in components.values()]
        values.append(torch.cat(columns, dim=1).cpu().numpy())
    return np.concatenate(values)


def _batches(
    recommender: "Recommender", histories: Sequence[Sequence[int]], targets: Sequence[int]
) -> Iterator[tuple[Sequence[Sequence[int]], CatalogTrie, torch.Tensor]]:
    """Histories, the trie or its view, and the leaves of the targets, (batch, 1)."""
    trie, size = recommender.trie, recommender.config.batch_size
    for start in range(0, len(histories), size):
        part = histories[start : start + size]
        view = trie.without(part) if recommender.config.exclude_history else trie
        numbers = torch.as_tensor(targets[start : start + size], device=trie.device)
        yield part, view, trie.leaf_of_item[numbers].long()[:, None]


def fitted(
    columns: np.ndarray,
    buckets: Buckets,
    components: Mapping[str, Component],
    histories: Histories,
    per_bucket: bool,
    pseudo_counts: float,
) -> Mixture:
    """A cache with the weights under which the targets of some examples are likeliest.

    Args:
        columns: (rows, 1 + components) the probability of each target under the model and the components.
        buckets: of the components' interactions.
        histories: of the rows.
        per_bucket: weights for each bucket of histories, otherwise one set for all.
        pseudo_counts: rows' worth of the overall weights that each bucket begins with.

    Raises:
        DataError: no target has a probability above 0 under any of them.
    """
    values = fit_weights(columns, buckets.of(histories), pseudo_counts=pseudo_counts, per_bucket=per_bucket)
    return Mixture(components, buckets, MixtureWeights((MODEL, *components), keep_model(values), made_from(components)))


def keep_model(weights: np.ndarray) -> np.ndarray:
    """Weights, (buckets, 1 + components), of which the model's is at least `LEAST_SHARE`: so every item stays possible."""
    weights = np.column_stack([np.maximum(weights[:, :1], LEAST_SHARE), weights[:, 1:]])
    return weights / weights.sum(axis=1, keepdims=True)
