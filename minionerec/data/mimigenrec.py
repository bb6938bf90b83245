"""MIMIGenRec's finished data: `id2sid.json` and `sft/train.json`, `sft/valid.json`, `sft/test.json`.

A record asks about semantic IDs in words: `input`, `output`. Records whose answer is a SID and whose question holds SIDs are
the examples. Questions about one item's title give the titles. Other records repeat the same histories for other tasks and are
left out, counted. The files name no users and, where items share a SID, not which of them is meant: the first item of the SID
is taken, counted.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from minionerec.config import DataConfig
from minionerec.config.documents import parse_json
from minionerec.data.bad_rows import Problems
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, SPLITS, Dataset
from minionerec.data.released import sid_frame, sid_tokens
from minionerec.data.sequences import in_numerical_order
from minionerec.data.texts import readable_column
from minionerec.errors import DataError

INDEX = "id2sid.json"
OTHER_TASKS, SHARED = "records_of_other_tasks", "examples_of_shared_sids"
_SID = re.compile(r"<a_\d+>(?:<[b-z]_\d+>)*")
_TITLE_OF = re.compile(rf'What is the title of item "({_SID.pattern})"\?')
_WITH_TITLE = re.compile(r"Which item has the title: (.*)\?", re.DOTALL)


def folder_of(path: Path, category: str | None) -> Path:
    """The folder of one data set: the path itself, or its subfolder of the category's name.

    Raises:
        DataError: no `id2sid.json` lies there.
    """
    candidates = [path, path / category] if category else [path]
    folder = next((folder for folder in candidates if (folder / INDEX).is_file()), None)
    if folder is None:
        named = sorted(child.name for child in path.glob("*") if (child / INDEX).is_file())
        advice = f"Choose one of {', '.join(named)} with data.category." if named else "data/README.md shows the layout."
        raise DataError(f"{path}: no {INDEX} in this folder. {advice}")
    return folder


def files(path: Path, category: str | None) -> tuple[Path, ...]:
    """The files of one data set.

    Raises:
        DataError: one is missing.
    """
    folder = folder_of(path, category)
    paths = (folder / INDEX, *(folder / "sft" / f"{name}.json" for name in SPLITS))
    for file in paths:
        if not file.is_file():
            raise DataError(f"{file}: not found. MIMIGenRec's data are {INDEX} and sft/train.json, valid.json and test.json.")
    return paths


def read(path: Path, config: DataConfig, problems: Problems) -> Dataset:
    """The examples, titles and SIDs of such a folder.

    Each example is a user of its own. Its position is one more than its history is long, since nothing says that a history is
    complete.

    Raises:
        DataError: a file is missing or malformed; or a record names a SID that no item has, unless skipped.
    """
    index, *splits = files(path, config.category)
    tokens = sid_tokens(index)
    items = in_numerical_order(tokens)
    by_sid: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_sid.setdefault("".join(tokens[item]), []).append(number)
    titles: dict[str, dict[str, None]] = {}
    train, valid, test = (
        _examples(name, split, by_sid, titles, config.max_history, problems) for name, split in zip(SPLITS, splits, strict=True)
    )
    catalog = _catalog(items, by_sid, titles)
    return Dataset(catalog, train, valid, test, sids=sid_frame([tokens[item] for item in items]))


def _examples(
    name: str,
    path: Path,
    by_sid: Mapping[str, Sequence[int]],
    titles: dict[str, dict[str, None]],
    max_history: int,
    problems: Problems,
) -> pl.DataFrame:
    """The examples of one file; `titles` collects the titles that it names, by SID, in their order."""
    rows = []
    for number, record in enumerate(_records(path), 1):
        question, answer = (record.get(field) if isinstance(record, dict) else None for field in ("input", "output"))
        if not isinstance(question, str) or not isinstance(answer, str):
            problems.add(f"{path}, record {number}: found {str(record)[:60]}, expected an object with input and output.")
            continue
        answer = answer.strip()
        if named := _TITLE_OF.fullmatch(question) or _WITH_TITLE.fullmatch(question):
            sid, title = (named[1], answer) if named.re is _TITLE_OF else (answer, named[1])
            titles.setdefault(sid, {})[title] = None
            continue
        sids = [*_SID.findall(question), answer]
        if len(sids) < 2 or not _SID.fullmatch(answer):
            problems.count(OTHER_TASKS, 1)
            continue
        unknown = next((sid for sid in sids if sid not in by_sid), None)
        if unknown is not None:
            problems.add(f"{path}, record {number}: no item of {INDEX} has the SID {unknown}.")
            continue
        problems.count(SHARED, int(any(len(by_sid[sid]) > 1 for sid in sids)))
        *history, target = (by_sid[sid][0] for sid in sids)
        rows.append((f"{name}-{number}", history[-max_history:], target, None, len(history) + 1))
    return pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row")


def _records(path: Path) -> list[Any]:
    try:
        values = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error}).") from None
    if not isinstance(values, list):
        raise DataError(f"{path}: holds a {type(values).__name__}, expected a list of records.")
    return values


def _catalog(items: Sequence[str], by_sid: Mapping[str, Sequence[int]], titles: Mapping[str, dict[str, None]]) -> pl.DataFrame:
    """Items with their titles; an item whose title no record names is called by its id."""
    named = list(items)
    for sid, numbers in by_sid.items():
        candidates = [*titles.get(sid, {})]
        if len(candidates) == len(numbers):  # in the order of the items, as MIMIGenRec writes them
            for number, title in zip(numbers, candidates, strict=True):
                named[number] = title
        elif candidates:
            for number in numbers:
                named[number] = " / ".join(candidates)
    readable = readable_column(pl.Series("title", named, dtype=pl.String))
    return pl.DataFrame({"item_id": list(items), "title": readable, "text": readable}, schema=CATALOG_SCHEMA)
