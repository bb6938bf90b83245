"""An exported folder: everything that recommends, without the run that it came from.

Files next to the model and its tokenizer: `serving.json` (how the model is asked and searched), `trie.safetensors`,
`sids.json`, `catalog.parquet`, `golden.jsonl`, `check.py`, `README.md` and `manifest.json`. `export.py` writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from minionerec.artifacts import Manifest, read_json, write_json
from minionerec.config import EvalConfig, PromptsConfig
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError, CatalogError
from minionerec.prompts.record import check_prompts
from minionerec.sid.index import SidIndex, parse_token

SERVING, GOLDEN, SIDS, CATALOG, TRIE = "serving.json", "golden.jsonl", "sids.json", "catalog.parquet", "trie.safetensors"
FORMAT = "minionerec-bundle-1"
CARD = "README.md"  # may be edited: it is read by people only
_POPULARITY = "popularity"  # column of the catalog: training interactions


@dataclass(frozen=True)
class Bundle:
    """What an exported folder says, next to its model.

    Attributes:
        dataset: the catalog, without texts, and no examples.
        index: the items' SIDs, without codebooks.
        prompts: how the model is asked.
        lists: how its lists are made.
        max_history: items of a history that are read, the newest.
        popularity: (items,) training interactions.
        stage: the training stage that made the model.
    """

    dataset: Dataset
    index: SidIndex
    prompts: PromptsConfig
    lists: EvalConfig
    max_history: int
    popularity: np.ndarray
    stage: str


def is_bundle(folder: Path) -> bool:
    """Whether a folder was exported, rather than made by a run."""
    return (folder / SERVING).is_file() or (folder / TRIE).is_file()


def read(folder: Path) -> Bundle:
    """Read an exported folder, all but the model.

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another export.
        ConfigError: the model was trained with wordings that this version does not have.
    """
    serving = read_json(folder / SERVING)
    form = serving.get("format") if isinstance(serving, dict) else None
    if form != FORMAT:
        raise ArtifactError(f"{folder / SERVING}: format {form!r}, this version reads {FORMAT}. Export the run again.")
    load_manifest(folder)
    # A field that another version did not record keeps its default here, and the check names it.
    prompts = PromptsConfig(**_known(PromptsConfig, serving["prompts"]))
    check_prompts(serving, prompts, str(folder))
    catalog = read_parquet(folder / CATALOG, ArtifactError, "Export the run again.")
    popularity = catalog[_POPULARITY].to_numpy()
    catalog = catalog.drop(_POPULARITY).with_columns(text=pl.lit(""))
    examples = pl.DataFrame(schema=SPLIT_SCHEMA)
    columns = [*CATALOG_SCHEMA, *(name for name in catalog.columns if name not in CATALOG_SCHEMA)]
    dataset = Dataset(catalog.select(columns), examples, examples, examples)
    return Bundle(
        dataset=dataset,
        index=_read_sids(folder / SIDS, dataset),
        prompts=prompts,
        lists=EvalConfig(**_known(EvalConfig, serving)),
        max_history=serving["max_history"],
        popularity=popularity,
        stage=serving["stage"],
    )


def _known(section: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(section) if field.name in values}


def load_manifest(folder: Path) -> Manifest:
    """The manifest, after a check of all files but the card, which may be edited.

    Raises:
        ArtifactError: the manifest or a file is missing or not as it was exported.
    """
    try:
        return Manifest.load(folder, editable=(CARD,))
    except ArtifactError as error:
        raise ArtifactError(
            f"{error} The stage is the export. Copy or download the folder again, or export it again."
        ) from None


def write_catalog(path: Path, catalog: pl.DataFrame, popularity: np.ndarray) -> None:
    """Write what recommending needs of a catalog: ids, titles, categories and popularity, but no texts.

    Args:
        popularity: (items,) training interactions.
    """
    columns = [name for name in ("item_id", "title", "brand", "categories") if name in catalog.columns]
    catalog.select(columns).with_columns(pl.Series(_POPULARITY, popularity)).write_parquet(path)


def write_sids(path: Path, index: SidIndex, item_ids: list[str], token_ids: Mapping[str, int]) -> None:
    """Write each item's SID as token strings, in the order of the catalog, and the id of each token.

    Args:
        token_ids: by token string; other tokens are left out.
    """
    write_json(
        path,
        {
            "codebook_sizes": list(index.codebook_sizes),
            "tokens": {token: token_ids[token] for token in index.token_strings()},
            "items": {item_id: index.tokens(item) for item, item_id in enumerate(item_ids)},
        },
    )


def _read_sids(path: Path, dataset: Dataset) -> SidIndex:
    values = read_json(path)
    if list(values["items"]) != dataset.catalog["item_id"].to_list():
        raise ArtifactError(f"{path}: has other items than {CATALOG} next to it. Export the run again.")
    sizes = values["codebook_sizes"]
    codes = np.full((len(values["items"]), len(sizes)), -1, dtype=np.int32)
    for item, tokens in enumerate(values["items"].values()):
        for level, token in enumerate(tokens):
            parsed = parse_token(token)
            if parsed is None or parsed[0] != level or level >= len(sizes):
                raise ArtifactError(f"{path}: {token!r} is no token of level {level}. Export the run again.")
            codes[item, level] = parsed[1]
    try:
        return SidIndex(codes, tuple(sizes), dataset.digest)
    except CatalogError as error:
        raise ArtifactError(f"{path}: {error} Export the run again.") from None
