"""New items get SIDs; no old item's changes, so a model trained on the old ones stays valid.

Inputs: `<run>/data`, whose catalog holds every item of the base run and further ones, and `<base>/sid`. Output: `<run>/sid`
with the files that `build` writes; `lineage` in its `sid.json` lists every index that it descends from.

Command: `minionerec sid append --base runs/OLD --config YOUR.yaml`
"""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from minionerec import artifacts
from minionerec.artifacts import Manifest, Recipe
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, CatalogError, ConfigError
from minionerec.sid.build import check_catalog, data_digest, sid_recipe, sid_section, stage_inputs
from minionerec.sid.codebooks import Quantizer
from minionerec.sid.collaborative import consecutive_pairs, guide_of
from minionerec.sid.collisions import Sid, nearest_unused, occupy
from minionerec.sid.diagnose import ERROR, diagnose, relative_error
from minionerec.sid.encoder import encoder_identity, item_vectors
from minionerec.sid.index import SidIndex
from minionerec.sid.quantize import check_vectors
from minionerec.sid.store import load_quantizer, save_quantizer

_SAME_ERROR = 0.01  # relative; encoders differ by less between machines


def append_sids(config: Config, base: Path) -> tuple[Manifest, bool]:
    """Extend the SIDs of the run `base` to the catalog of this run.

    Encoder and quantizer are the base's; the configuration's `sid` section must agree with them.

    Returns:
        The manifest, and whether the artefact was built by this call.

    Raises:
        ArtifactError: a stage has not run, or its files are damaged.
        CatalogError: an old item is missing, or no SID is free.
        ConfigError: the vectors come from another encoder than the base's, or do not fit its SIDs, or `sid.collisions`
            differs or is `item`.
    """
    data_digest(config)  # refuses missing data first
    artifacts.require(base / "data", "minionerec data prepare --config BASE.yaml")
    old = artifacts.require(base / "sid", "minionerec sid --config BASE.yaml")
    if (config.folder / "sid").resolve() == (base / "sid").resolve():
        raise ConfigError(f"--base {base} is this run's own folder; give the new catalog a run of its own with --out DIR.")
    if old.config["sid"].get("shipped"):
        raise ConfigError(
            f"{base / 'sid'} holds semantic IDs that came with the raw files; no quantizer can give more of them."
        )
    if (before := old.config["sid"]["collisions"]) != config.sid.collisions:
        raise ConfigError(
            f"sid.collisions is {config.sid.collisions}, but {base / 'sid'} was made with {before}. "
            f"Set --sid.collisions {before}."
        )

    if before == "item":
        raise ConfigError(
            f"{base / 'sid'} was made with sid.collisions item: each new item would need a token of its own, which the model "
            "of the old items does not have. Build the index anew with minionerec sid."
        )

    def inputs() -> dict[str, str]:
        return stage_inputs(config, fits=False) | {
            "base": artifacts.require(base / "sid", "minionerec sid --config BASE.yaml").digest
        }

    recipe = sid_recipe(config, sid_section(config), config.seed, inputs)
    return recipe.make(lambda: _append(config, base, old, recipe))


def _append(config: Config, base: Path, old: Manifest, recipe: Recipe) -> None:
    dataset, base_dataset = Dataset.load(config.folder / "data"), Dataset.load(base / "data")
    check_catalog(dataset)
    base_index = SidIndex.load(base / "sid", base_dataset)
    quantizer = load_quantizer(base / "sid", base_index.codebooks)
    old_rows = _rows_of(base_dataset, dataset, base)
    vectors = item_vectors(dataset, config.sid, config.seed)
    if (identity := encoder_identity(config.sid, vectors)) != base_index.encoder:
        raise ConfigError(
            f"The vectors come from {identity}, but {base / 'sid'} was made with {base_index.encoder}: their codes would mean "
            "nothing. Use the base's encoder, or build the index anew with minionerec sid."
        )
    check_vectors(vectors)
    error = relative_error(vectors, base_index.codes[:, : len(quantizer.codebook_sizes)], quantizer, old_rows)
    _check_fit(error, old, base, identity)
    with recipe.write() as draft:
        pairs = consecutive_pairs(dataset.train)
        encoded = quantizer.encode(vectors, guide_of(config, dataset, vectors))
        codes = extend(base_index, old_rows, encoded, vectors, quantizer, share=config.sid.collisions in ("keep", "sinkhorn"))
        step = {"base": recipe.inputs["base"], "items_before": len(old_rows), "items_after": len(codes)}
        lineage = (*base_index.lineage, step)
        index = SidIndex(codes, base_index.codebook_sizes, dataset.digest, base_index.codebooks, identity, lineage)
        index.save(draft.path)
        save_quantizer(quantizer, draft.path)
        levels = encoded.shape[1]
        encoded[old_rows] = base_index.codes[:, :levels]
        draft.metrics = {"appended": len(codes) - len(old_rows)} | diagnose(encoded, codes, vectors, quantizer, pairs)


def _check_fit(error: float, old: Manifest, base: Path, identity: str) -> None:
    """Refuse vectors that the old SIDs were not made of: another file's or model's may have the same name and dimensions.

    The base's manifest says how far its vectors lie from what their SIDs stand for; the same vectors lie as far.

    Args:
        error: of the old items' vectors and SIDs, see `relative_error`.
        old: the manifest of the base's SIDs.
        identity: where the vectors come from, in words.
    """
    recorded = old.metrics.get(ERROR)
    if recorded is None:
        raise ArtifactError(
            f"{base / 'sid'}: its manifest does not say {ERROR}, so nothing tells whether the vectors are its own. "
            "Build the index anew with minionerec sid."
        )
    if abs(error - recorded) > _SAME_ERROR * max(recorded, 1e-6):
        raise ConfigError(
            f"The vectors ({identity}) are not those that the SIDs in {base / 'sid'} were made of: the squared distance of its "
            f"items to what their SIDs stand for is {error:.4g} of the variance, and it was {recorded:.4g}. Use "
            "the same sid.vectors or sid.encoder, with the rows of a file in the new catalog's order, or build the index anew "
            "with minionerec sid."
        )


def extend(
    base: SidIndex, old_rows: np.ndarray, encoded: np.ndarray, vectors: np.ndarray, quantizer: Quantizer, *, share: bool
) -> np.ndarray:
    """Codes of a larger catalog.

    A new item takes its own codes if no other item has them. Otherwise it shares them (`share`), or takes the next suffix of
    a SID whose items all have one, as long as the base's suffix tokens last, or else the nearest free SID. New items are
    handled in the order of their vectors' bytes, so the order of the catalog does not matter.

    Args:
        base: the old index.
        old_rows: row of each of its items in the new catalog, (old items,).
        encoded: (items, quantizer's levels), of the new catalog.
        vectors: (items, dimensions).
        quantizer: the base's.
        share: an item may have the SID of another.

    Returns:
        (items, base.levels) int32; rows of old items are the base's.

    Raises:
        CatalogError: no SID is free.
    """
    levels = encoded.shape[1]
    codes = np.full((len(encoded), base.levels), -1, dtype=np.int32)
    codes[old_rows] = base.codes
    used: Counter[Sid] = Counter()
    suffixes: dict[Sid, int] = {}
    for row in base.codes.tolist():
        stem = tuple(row[:levels])
        if not used[stem]:
            occupy(stem, used)
        if row[levels:] and row[levels] >= 0:
            suffixes[stem] = max(suffixes.get(stem, -1), row[levels])
    capacity, taken = math.prod(quantizer.codebook_sizes), len({tuple(row[:levels]) for row in base.codes.tolist()})
    new_items = np.setdiff1d(np.arange(len(encoded)), old_rows)
    for item in sorted(new_items.tolist(), key=lambda item: (vectors[item].tobytes(), item)):
        stem = tuple(encoded[item].tolist())
        next_suffix = suffixes.get(stem, -1) + 1
        if used[stem] and not share and stem in suffixes and next_suffix < base.codebook_sizes[-1]:
            suffixes[stem] = codes[item, levels] = next_suffix
        elif used[stem] and not share:
            if taken >= capacity:
                raise CatalogError(f"All {capacity:,} semantic IDs are taken; build the index anew with larger codebooks.")
            stem = nearest_unused(vectors[item], quantizer, used)
        if not used[stem]:
            occupy(stem, used)
            taken += 1
        codes[item, :levels] = stem
    return codes


def _rows_of(base: Dataset, dataset: Dataset, folder: Path) -> np.ndarray:
    """Row of each of the base's items in the new catalog."""
    row = {name: number for number, name in enumerate(dataset.catalog["item_id"].to_list())}
    names = base.catalog["item_id"].to_list()
    missing = [name for name in names if name not in row]
    if missing:
        raise CatalogError(
            f"{len(missing):,} of the {len(names):,} items of {folder} are not in the new catalog, first {missing[0]!r}. "
            "Appending keeps every old item: leave it in the catalog, or build the index anew."
        )
    texts, old_texts = dataset.catalog["text"].to_list(), base.catalog["text"].to_list()
    changed = [name for name, text in zip(names, old_texts, strict=True) if texts[row[name]] != text]
    if changed:
        raise CatalogError(
            f"The text of {len(changed):,} items differs from the text in {folder}, first {changed[0]!r}. Their SIDs would "
            "still describe the old text: restore it, or build the index anew."
        )
    return np.array([row[name] for name in names], dtype=np.int64)
