"""Tables beyond the headline, of several recommenders side by side: per level, per user, per slice, and what got lost."""

from collections.abc import Mapping
from typing import Any

Found = Mapping[str, Mapping[str, Any]]  # label to what `metrics.json` holds, or a part of it

_KINDS = {"independent": "Independent: one level's code alone", "cumulative": "Cumulative: all codes so far"}
_PER_USER = ("HR@1", "HR@5", "HR@10", "HR@50", "NDCG@10", "MRR@10")
_SEARCH = ("HR@1", "HR@10", "NDCG@10", "overlap", "missed")


def level_tables(levels: Found) -> list[dict[str, Any]]:
    """The independent and the cumulative level table, recommenders interleaved by cut-off.

    Args:
        levels: per label the section `levels`; depths and cut-offs may differ.

    Returns:
        Per table its `kind`, `title`, `columns`, `labels` and `groups`; a group has the cut-off `k` and `rows` of `label` and
        `shares`, one per column, None where SIDs are not that deep.
    """
    tables = []
    for kind, title in _KINDS.items():
        found = {label: tables_of[kind] for label, tables_of in levels.items()}
        columns = max((list(shares) for rows in found.values() for shares in rows.values()), key=len)
        cutoffs = sorted({k for rows in found.values() for k in rows}, key=int)
        groups = [
            {
                "k": k,
                "rows": [
                    {"label": label, "shares": [rows[k].get(column) for column in columns]}
                    for label, rows in found.items()
                    if k in rows
                ],
            }
            for k in cutoffs
        ]
        tables.append({"kind": kind, "title": title, "columns": columns, "labels": list(found), "groups": groups})
    return tables


def drop_off(levels: Found) -> dict[str, Any]:
    """The drop-off table: `labels`, and `rows` of a `step` and a share per label, None where nothing was left to keep."""
    found = {label: tables["drop_off"] for label, tables in levels.items()}
    steps = max(found.values(), key=len)
    return {
        "labels": list(found),
        "rows": [{"step": step, "shares": [steps_of.get(step) for steps_of in found.values()]} for step in steps],
    }


def _per_user(found: Found) -> dict[str, Any] | None:
    known = {label: metrics["per_user"] for label, metrics in found.items() if metrics.get("per_user")}
    if not known:
        return None
    names = [name for name in _PER_USER if any(name in cells for cells in known.values())]
    rows = [{"label": label, "cells": [cells.get(name) for name in names]} for label, cells in known.items()]
    return {"names": names, "rows": rows}


def _slices(found: Found) -> dict[str, Any] | None:
    known = {label: metrics["slices"] for label, metrics in found.items() if metrics.get("slices")}
    parts = {
        (question, answer): part
        for slices in known.values()
        for question, answers in slices.items()
        for answer, part in answers.items()
    }
    if not parts:
        return None
    metric = next(name for name in next(iter(parts.values())) if name.startswith("HR@"))
    questions = list(dict.fromkeys(question for question, _ in parts))
    rows = []
    for question, answer in sorted(parts, key=lambda pair: questions.index(pair[0])):
        cells = [slices.get(question, {}).get(answer, {}).get(metric) for slices in known.values()]
        rows.append({"question": question, "answer": answer, "share": parts[question, answer]["share"], "cells": cells})
    return {"metric": metric, "labels": list(known), "rows": rows}


def _exposure(found: Found) -> dict[str, Any] | None:
    known = {label: metrics["exposure"] for label, metrics in found.items() if metrics.get("exposure")}
    names = [name for name in dict.fromkeys(name for values in known.values() for name in values) if name != "k"]
    rows = [{"name": name.replace("_", " "), "values": [values.get(name) for values in known.values()]} for name in names]
    rows = [row for row in rows if any(value is not None for value in row["values"])]
    return {"k": next(iter(known.values()))["k"], "labels": list(known), "rows": rows} if rows else None


def _lost(found: Found) -> dict[str, Any]:
    by_level = {label: {row["level"]: row for row in metrics["lost"]} for label, metrics in found.items()}
    levels = sorted({level for rows in by_level.values() for level in rows})
    return {
        "labels": list(by_level),
        "rows": [{"level": level, "cells": [rows.get(level) for rows in by_level.values()]} for level in levels],
    }


def _search(found: Found) -> list[dict[str, Any]]:
    tables = []
    for label, metrics in found.items():
        search = metrics.get("search")
        if not search:
            continue
        rows = [
            {"width": f"{width} beams", "values": [row[name] for name in _SEARCH]} for width, row in search["widths"].items()
        ]
        whole = [search["exact"].get(name) for name in _SEARCH[:3]]
        rows.append({"width": "whole catalog", "values": [*whole, 1.0, 0.0]})
        tables.append({"label": label, "examples": search["rows"], "names": _SEARCH, "rows": rows, "pruned": search["pruned"]})
    return tables


def tables(found: Found) -> dict[str, Any]:
    """What `metrics.json` says beside accuracy, as tables with a column or row per recommender.

    Returns:
        `per_user`, `slices`, `exposure`: None where no recommender has it; `lost`; `search`: a list, one entry per
        recommender that was traced.
    """
    return {
        "per_user": _per_user(found),
        "slices": _slices(found),
        "exposure": _exposure(found),
        "lost": _lost(found),
        "search": _search(found),
    }
