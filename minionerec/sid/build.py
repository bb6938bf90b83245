"""Stage `sid`: give every item of the catalog a semantic ID.

Inputs: `<run>/data` (the catalog's text, the training split's consecutive items, or the SIDs that came with it). Outputs in
`<run>/sid`: `index.json`, `codes.safetensors`, `quantizer.safetensors`, `sid.json`, and a manifest with the figures of
`diagnose`.

Differs from the paper, which embeds with Qwen3-Embedding-4B and quantises with an RQ-VAE or size-constrained RQ-KMeans: the
encoder here is all-MiniLM-L6-v2 by default (22M parameters, runs on a CPU); the default quantiser, `rq-kmeans-joint`, lets
co-occurrence shape the first code, balances the further ones and refines all levels together; and items with equal codes are
separated by a minimum-cost assignment at the last level, not by an extra level. Fields of `--sid` change each of these choices.

Command: `minionerec sid --config ml-100k.yaml`
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minionerec import artifacts
from minionerec.artifacts import UNSEEDED, Draft, Manifest, Recipe
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import baseline_digest
from minionerec.distributed import is_main_process, wait_for_everyone
from minionerec.errors import CatalogError, ConfigError
from minionerec.sid.assign import assign
from minionerec.sid.collaborative import collaborative_vectors, consecutive_pairs, guide_of
from minionerec.sid.collisions import resolve
from minionerec.sid.diagnose import diagnose, shared_codes, structure
from minionerec.sid.encoder import embed_together, encoder_identity, item_vectors, vector_inputs
from minionerec.sid.index import SidIndex
from minionerec.sid.quantize import Fitted, check_codebooks, fit_quantizer, fit_to_sample
from minionerec.sid.shipped import index_of_tokens, separate, separation
from minionerec.sid.store import load_fit, save_fit, save_quantizer

log = logging.getLogger(__name__)

_FITTED, _GUIDE = "fitted", "guide.npy"  # among the checkpoints: the quantizer there is whole; what decides first codes


def build_sids(config: Config) -> tuple[Manifest, bool]:
    """Build `<run>/sid`, or leave it as it is if config, seed and data are unchanged. Every process of a launch calls it.

    Returns:
        The manifest, and whether the artefact was built by this call.

    Raises:
        ArtifactError: the data stage or the baseline of `sid.collaborative_model` has not run, or its files are damaged.
        CatalogError: an item is twice in the catalog, there are fewer items than codes or more than semantic IDs, or shipped
            ones cannot be made distinct.
        ConfigError: `sid.shipped` is set, but the data brings no semantic IDs; or encoder or method cannot be used.
        DataError: an item has no text or no usable vector.
        TrainingError: a neural method diverged.
    """
    if config.sid.shipped:
        # No other settings decide semantic IDs that came with the data. `keep` is left out: so older runs stay current.
        decisive = {"shipped": True} | ({} if config.sid.collisions == "keep" else {"collisions": config.sid.collisions})
        shipped = sid_recipe(config, {"sid": decisive}, UNSEEDED, lambda: {"data": data_digest(config)})
        return shipped.make(lambda: _take_shipped(config, shipped) if is_main_process() else None, collective=True)
    recipe = sid_recipe(config, sid_section(config), config.seed, lambda: stage_inputs(config))
    return recipe.make(lambda: _build(config, recipe), collective=True)


def sid_section(config: Config) -> dict[str, Any]:
    """Section `sid` for the recipe. What only `letter` reads is left out for other methods: so older runs stay current."""
    sections = config.section("sid")
    if config.sid.method != "letter":
        del sections["sid"]["letter"]
    return sections


def sid_recipe(config: Config, sections: Mapping[str, Any], seed: int, inputs: Callable[[], dict[str, str]]) -> Recipe:
    """What the stage's artefact is made from.

    Args:
        seed: of all random choices, `UNSEEDED` if there are none.
        inputs: gives the digests of the inputs, now and once more when the artefact is complete.
    """
    folder, replace, wait = config.folder / "sid", config.replace, config.wait
    return Recipe("sid", folder, sections, inputs(), seed, replace=replace, wait=wait, reread=inputs)


def _build(config: Config, recipe: Recipe) -> None:
    dataset = Dataset.load(config.folder / "data")
    check_catalog(dataset)
    check_codebooks(len(dataset.catalog), config.sid.sizes)  # before texts are embedded, which takes long
    sampled = len(dataset.catalog) > config.sid.max_training_vectors
    with recipe.write(resumable=sampled, collective=True) as draft:
        embed_together(dataset.catalog["text"].to_list(), config.sid, config.seed)
        store = draft.path / artifacts.CHECKPOINTS
        fitted: Fitted | None = None
        if is_main_process():
            vectors = item_vectors(dataset, config.sid, config.seed)
            if not sampled or not (store / _FITTED).is_file():
                fitted = _fit(config, dataset, vectors, store if sampled else None)
        wait_for_everyone()
        if sampled:
            if not is_main_process():
                vectors = item_vectors(dataset, config.sid, config.seed)  # which the main process has cached
            quantizer, path = load_fit(store), store / _GUIDE
            guide = np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None
            fitted = Fitted(quantizer, assign(quantizer, vectors, guide, store))
        if fitted is not None and is_main_process():
            _keep(config, dataset, vectors, fitted, draft)


def _fit(config: Config, dataset: Dataset, vectors: np.ndarray, store: Path | None) -> Fitted | None:
    """The quantizer and the codes. With a `store` the quantizer alone, fitted to a sample, is written there.

    An interrupted stage finds it there and does not fit it again.
    """
    guide, collaborative = guide_of(config, dataset, vectors), collaborative_vectors(config, dataset)
    if store is None:
        return fit_quantizer(vectors, config.sid, config.seed, guide, collaborative)
    quantizer, _ = fit_to_sample(vectors, config.sid, config.seed, guide, collaborative)
    store.mkdir(exist_ok=True)
    save_fit(quantizer, store)
    if guide is not vectors:
        np.save(store / _GUIDE, guide, allow_pickle=False)
    artifacts.replace_text(store / _FITTED, "")
    return None


def _keep(config: Config, dataset: Dataset, vectors: np.ndarray, fitted: Fitted, draft: Draft) -> None:
    """Make the SIDs distinct, and write them with all that describes them."""
    codes = resolve(fitted.codes, vectors, fitted.quantizer, config.sid.collisions)
    own_last = config.sid.collisions == "item"
    codebooks = fitted.quantizer.codebooks[: len(config.sid.sizes) - own_last]
    sizes = (*map(len, codebooks), *(int(column.max()) + 1 for column in codes.T[len(codebooks) :]))
    index = SidIndex(codes, sizes, dataset.digest, codebooks, encoder_identity(config.sid, vectors))
    index.save(draft.path)
    save_quantizer(fitted.quantizer, draft.path)
    pairs = consecutive_pairs(dataset.train)
    draft.metrics = diagnose(fitted.codes, codes, vectors, fitted.quantizer, pairs, own_last)
    log.info("SIDs of %d items; %.1f %% were moved", len(codes), 100 * draft.metrics["moved"])


def _take_shipped(config: Config, recipe: Recipe) -> None:
    dataset = Dataset.load(config.folder / "data")
    check_catalog(dataset)
    if dataset.sids is None:
        raise ConfigError(
            f"sid.shipped is set, but data.source {config.data.source!r} brings no semantic IDs (no *.index.json); set it to "
            "false."
        )
    given = index_of_tokens(dataset.sids["tokens"].to_list(), dataset)
    index = separate(given, config.sid.collisions)
    with recipe.write() as draft:
        index.save(draft.path)
        draft.metrics = shared_codes(index.codes) | structure(index.codes, None, consecutive_pairs(dataset.train))
        if config.sid.collisions != "keep":
            draft.metrics = separation(given, index) | draft.metrics


def data_digest(config: Config) -> str:
    """The digest of the run's data.

    Raises:
        ArtifactError: the data stage has not run, or its files are damaged.
    """
    return artifacts.require(config.folder / "data", "minionerec data prepare --config YOUR.yaml").digest


def stage_inputs(config: Config, *, fits: bool = True) -> dict[str, str]:
    """Digests of the inputs: the dataset, the baseline of `sid.collaborative_model`, the user's own encoder and vectors.

    Args:
        fits: a quantizer is fitted, which `letter` does with the baseline's vectors; encoding reads them only to fuse.

    Raises:
        ArtifactError: data or baseline are missing or damaged.
    """
    inputs = {"data": data_digest(config)}
    if (name := config.sid.collaborative_model) is not None and (fits or config.sid.fusion):
        inputs[f"baselines/{name}"] = baseline_digest(config.folder, name, inputs["data"])
    return inputs | vector_inputs(config.sid)


def check_catalog(dataset: Dataset) -> None:
    """Refuse a catalog that holds an item twice.

    Raises:
        CatalogError: naming the first such item and its rows.
    """
    ids = dataset.catalog["item_id"].to_numpy()
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < len(ids):
        repeated = names[counts > 1]
        rows = np.flatnonzero(ids == repeated[0])
        raise CatalogError(
            f"The catalog holds {len(repeated):,} items more than once, first {repeated[0]!r} in rows {rows[:5].tolist()}. "
            "Keep one row per item and run the data stage again."
        )
