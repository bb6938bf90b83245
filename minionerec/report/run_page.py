"""What the page says: tables and examples as plain values, computed from the run's artefacts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from minionerec.artifacts import Manifest
from minionerec.config import CUTOFFS, Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, DataError
from minionerec.eval.compare import compare
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import ranks
from minionerec.sid.diagnose import perplexity
from minionerec.sid.index import SidIndex

SCALE: tuple[Literal["sid", "item"], ...] = ("sid", "item")
BASELINES = {  # beside the two floors that every run has
    "item-knn": "Item-kNN",
    "markov": "Markov chain",
    "gru4rec": "GRU4Rec",
    "gru4rec-released": "GRU4Rec (MiniOneRec's)",
    "caser": "Caser",
    "caser-released": "Caser (MiniOneRec's)",
    "sasrec": "SASRec",
    "sasrec-released": "SASRec (MiniOneRec's)",
    "bert4rec": "BERT4Rec",
    "lightsans": "LightSANs",
    "fearec": "FEARec",
    "fearec-published": "FEARec (as published)",
    "hstu": "HSTU",
    "trm4rec": "TRM4Rec",
    "wearec": "WEARec",
    "pswrec-v5": "PSWRec V5",
    "pswrec-v12": "PSWRec V12",
    "pswrec-v13": "PSWRec V13",
    "pswrec-v13-without-rotation": "PSWRec V13 without rotation",
}
LABELS = {"popularity": "Popularity", "repeat": "Repeat last", **BASELINES, "sft": "SFT", "rl": "SFT + RL"}
FAMILIES = {"HR": "Hit rate", "NDCG": "NDCG", "MRR": "MRR"}
_PREFIXES, _TITLES, _HISTORY, _TOP = 6, 5, 8, 5


@dataclass(frozen=True)
class Method:
    """One evaluated recommender: its lists and the content of its `metrics.json`."""

    name: str
    lists: RankedLists
    metrics: dict[str, Any]

    @property
    def label(self) -> str:
        """Its name for readers."""
        return LABELS[self.name]


def compared(first: Method, second: Method, on: Literal["sid", "item"], config: Config) -> dict[str, dict[str, Any]]:
    """How much `second` exceeds `first` on the same examples, see `eval.compare.compare`.

    Raises:
        ArtifactError: the two were measured on different examples.
    """
    try:
        return compare(first.lists, second.lists, config.eval.resamples, config.seed, on=on)
    except DataError as error:
        raise ArtifactError(
            f"eval/{first.name} has {len(first.lists)} examples, eval/{second.name} has {len(second.lists)}: {error} "
            "Run the eval stage again for both."
        ) from None


def result_tables(
    methods: Sequence[Method], on: Literal["sid", "item"], difference: Mapping[str, Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """A table per metric family: rows of cells with value, interval, whether it is the best, and how it lies to popularity."""
    floor = next((method.metrics[on] for method in methods if method.name == "popularity"), None)
    tables = []
    for family, title in FAMILIES.items():
        names = [f"{family}@{k}" for k in CUTOFFS]
        best = {name: max(method.metrics[on][name]["value"] for method in methods) for name in names}
        rows = []
        for method in methods:
            cells = []
            for name in names:
                cell = method.metrics[on][name]
                above = floor is not None and cell["low"] > floor[name]["high"]
                below = floor is not None and cell["high"] < floor[name]["low"]
                is_best = best[name] > 0 and cell["value"] == best[name]
                cells.append({**cell, "best": is_best, "sign": "above" if above else "below" if below else ""})
            rows.append({"name": method.name, "label": method.label, "cells": cells})
        changes = [difference.get(name) for name in names] if difference else []
        tables.append({"title": title, "family": family, "cutoffs": CUTOFFS, "rows": rows, "changes": changes})
    return tables


def items_differ(methods: Sequence[Method]) -> bool:
    """Whether item-level figures say anything that SID-level figures do not."""
    return any(
        cell["value"] != method.metrics["item"][name]["value"]
        for method in methods
        for name, cell in method.metrics["sid"].items()
    )


def sid_levels(index: SidIndex) -> list[dict[str, Any]]:
    """Per level: codes used of how many, and perplexity (exponential of the entropy of code use over items)."""
    rows = []
    for level, size in enumerate(index.codebook_sizes):
        column = index.codes[:, level]
        counts = np.bincount(column[column >= 0], minlength=size)
        used = counts[counts > 0]
        rows.append(
            {"level": level + 1, "used": len(used), "size": size, "perplexity": perplexity(used), "most": int(counts.max())}
        )
    return rows


def prefixes(index: SidIndex, titles: Sequence[str]) -> list[dict[str, Any]]:
    """The largest groups of items that share their first two codes (one code where SIDs have one level)."""
    depth = min(2, index.levels)
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, row in enumerate(index.codes[:, :depth].tolist()):
        groups.setdefault(tuple(row), []).append(item)
    largest = sorted(groups.values(), key=lambda items: (-len(items), items[0]))
    return [
        {
            "prefix": "".join(f"{token}>" for token in index.text(items[0]).split(">")[:depth]),
            "titles": [titles[item] for item in items[:_TITLES]],
            "more": max(0, len(items) - _TITLES),
        }
        for items in largest[:_PREFIXES]
        if len(items) > 1
    ]


def _spread(rows: np.ndarray, count: int) -> list[int]:
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)].tolist() if len(rows) else []


def examples(method: Method, index: SidIndex, titles: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Examples, half of them with a hit in the top five where there are so many, taken at even distances in the file.

    Recommendations are SIDs with the titles of all their items.
    """
    found = ranks(method.lists)
    hits, misses = np.flatnonzero(found < _TOP), np.flatnonzero(found >= _TOP)
    chosen = _spread(hits, max(count // 2, count - len(misses)))
    chosen += _spread(misses, count - len(chosen))

    def shown(items: Sequence[int]) -> dict[str, Any]:
        return {"title": " / ".join(titles[item] for item in items), "sid": index.text(items[0])}

    rows = []
    for row in chosen:
        one = method.lists.example(row)
        rows.append(
            {
                "user": one.user,
                "history": [shown([item]) for item in one.history[-_HISTORY:]],
                "earlier": max(0, len(one.history) - _HISTORY),
                "target": shown([one.target]),
                "top": [{**shown(index.items(sid)), "hit": sid == one.target_sid} for sid in one.sids[:_TOP]],
                "rank": int(found[row]) + 1 if np.isfinite(found[row]) else None,
                "length": len(one.sids),
            }
        )
    return rows


def dataset_figures(dataset: Dataset) -> dict[str, float]:
    """Counts of the dataset and the mean length of a test history."""
    return {
        "items": len(dataset.catalog),
        "users": dataset.test["user"].n_unique(),
        "train": len(dataset.train),
        "valid": len(dataset.valid),
        "test": len(dataset.test),
        "history": float(dataset.test["history"].list.len().cast(float).to_numpy().mean()),
    }


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers and words among an artefact's metrics."""
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def notes(manifests: Mapping[str, Manifest], missing: Sequence[str]) -> list[str]:
    """What the reader must know first: parts that are not there, and parts made from another run of their input."""
    said = [f"Not in this run, and so not on this page: {', '.join(missing)}."] if missing else []
    for name, manifest in manifests.items():
        for source, digest in manifest.inputs.items():
            if source in manifests and manifests[source].digest != digest:
                said.append(f"{name} was made from another {source} than the one in this folder: run {name} again.")
    return said
