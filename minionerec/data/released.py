"""The layout of the released MiniOneRec: `train|valid|test/*.csv`, `info/*.txt`, `index/*.index.json`, `index/*.item.json`.

The splits are as the files have them. If the train folder has only `NAME.partial.csv`, this is the train split. Lists are
Python literals; they are compared with the info file, and parsed with `ast.literal_eval` only if they differ as text.
Reading and writing back gives the same files; columns that the released code does not have (timestamp, position) are added only
if a dataset has timestamps, at the end of each row, which the released code does not read.
"""

import ast
import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from minionerec.config import DataConfig
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.checks import CONTROL, MARKUP, PLACED, placed
from minionerec.data.dataset import CATALOG_DETAILS, SID_SCHEMA, SPLIT_SCHEMA, SPLITS, Dataset
from minionerec.data.folders import one_file
from minionerec.data.sequences import read_json_object
from minionerec.data.tables import read_table, select, text_lines
from minionerec.data.texts import full_text, has_markup, readable_column
from minionerec.errors import DataError

COLUMNS = (*("user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"),)


def files(folder: Path, category: str | None) -> dict[str, Path]:
    """The files of one data set: info, index, item, train, valid, test; and item2id if it exists.

    Raises:
        DataError: one is missing, or there are several to choose from.
    """
    info = one_file(folder / "info", ".txt", category)
    paths_of = {"info": info}
    for name in SPLITS:
        paths = [folder / name / f"{info.stem}{ending}.csv" for ending in ("", ".partial")]
        existing = [path for path in paths if path.is_file()]
        if not existing or (name != "train" and existing[0] != paths[0]):
            raise DataError(f"{paths[0]}: not found. The split belongs to {info}; data/README.md shows the layout.")
        paths_of[name] = existing[0]
    names = [path.name.removesuffix(".index.json") for path in (folder / "index").glob("*.index.json")]
    fitting = [name for name in names if info.stem.startswith(name)]
    if not fitting:
        raise DataError(
            f"{folder / 'index'}: no *.index.json belongs to {info.name}; found {', '.join(sorted(names)) or 'none'}."
        )
    longest = max(fitting, key=len)
    paths_of |= {kind: folder / "index" / f"{longest}.{kind}.json" for kind in ("index", "item")}
    if (mapping := folder / "index" / f"{longest}.item2id").is_file():
        paths_of["item2id"] = mapping
    return paths_of


def sid_tokens(path: Path) -> dict[str, list[str]]:
    """The semantic IDs of an `*.index.json`, of the released code's layout or LETTER's: item to token strings, one per level.

    Raises:
        DataError: not such a file; the message names the item.
    """
    values = read_json_object(path)
    for item, tokens in values.items():
        if not item or re.search(CONTROL, item):
            raise DataError(f"{path}, item {item!r}: the item id is empty or has a tab, line break or other control character.")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) and token for token in tokens):
            raise DataError(f"{path}, item {item!r}: found {str(tokens)[:60]}, expected a list of tokens like <a_17>.")
    return values


def sid_frame(tokens: Sequence[Sequence[str]]) -> pl.DataFrame:
    """The token strings of each item as `Dataset.sids`."""
    return pl.DataFrame({"tokens": tokens}, schema=SID_SCHEMA)


def _item_names(path: Path, problems: Problems) -> dict[str, str]:
    """Item numbers to the ids behind them."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for line_number, line in enumerate(text_lines(path), 1):
        name, _, number = line.rpartition("\t")
        if not name or not number or re.search(CONTROL, name):
            problems.add(f"{path}, line {line_number}: found {line[:60]!r}, expected an item's id, a tab and its number.")
        elif number in names or name in taken:
            problems.add(f"{path}, line {line_number}: item {name!r} or its number {number!r} has a line above already.")
        else:
            names[number] = name
            taken.add(name)
    return names


def read(folder: Path, config: DataConfig, problems: Problems) -> Dataset:
    """A folder in the released code's layout.

    Raises:
        DataError: a file is missing or malformed; a row disagrees with the info or the index file (unless skipped).
    """
    paths = files(folder, config.category)
    tokens = sid_tokens(paths["index"])
    catalog, texts = _catalog(paths, tokens, problems)
    item_index = {item: number for number, item in enumerate(texts)}
    splits: dict[str, list[tuple[Any, ...]]] = {}
    reached: dict[str, int] = {}  # a user's last position so far
    for name in SPLITS:
        splits[name] = list(_examples(paths[name], texts, item_index, reached, config.max_history, problems))
    if "item2id" in paths:
        catalog = catalog.with_columns(pl.col("item_id").replace(_item_names(paths["item2id"], problems)))
        for name in catalog.filter(pl.col("item_id").is_duplicated())["item_id"].head(1):
            raise DataError(
                f"{paths['item2id']}: two items would be called {name!r}, one by a line of this file, the other because it has "
                "no line and keeps its number. Give every item a line."
            )
    train, valid, test = (pl.DataFrame(splits[name], schema=SPLIT_SCHEMA, orient="row") for name in SPLITS)
    return Dataset(catalog, train, valid, test, sids=sid_frame([tokens[item] for item in texts]))


def _catalog(
    paths: dict[str, Path], tokens: dict[str, list[str]], problems: Problems
) -> tuple[pl.DataFrame, dict[str, tuple[str, str]]]:
    """The catalog in the order of the info file, and each item's title and SID."""
    items = read_json_object(paths["item"])
    texts: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(text_lines(paths["info"]), 1):
        fields = line.split("\t")
        where = f"{paths['info']}, line {number}"
        if len(fields) != 3 or not fields[2]:
            problems.add(f"{where}: {len(fields)} fields, expected SID, title and item id, separated by tabs.")
            continue
        sid, title, item = fields
        if item in texts:
            problems.add(f"{where}: item {item!r} is listed twice. Keep one of the lines.")
        elif item not in tokens or sid != "".join(tokens[item]):
            problems.add(f"{where}: SID {sid!r}, but {paths['index'].name} has {tokens.get(item)} for item {item!r}.")
        elif not isinstance(items.get(item), dict):
            problems.add(f"{where}: item {item!r} has no entry in {paths['item']}.")
        else:
            texts[item] = (title, sid)
    columns: dict[str, list[str]] = {"item_id": list(texts), "title": [title for title, _ in texts.values()]}
    for name in CATALOG_DETAILS:
        columns[name] = [str(items[item].get(name) or "") for item in texts]
    catalog = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    problems.count(MARKUP, int((has_markup(catalog["title"]) | has_markup(catalog["description"])).sum()))
    titles, descriptions = readable_column(catalog["title"]), readable_column(catalog["description"])
    catalog = catalog.with_columns(text=full_text(pl.lit(titles), pl.lit(descriptions)))
    return catalog.select("item_id", "title", "text", *CATALOG_DETAILS), texts


def _examples(
    path: Path,
    texts: dict[str, tuple[str, str]],
    item_index: dict[str, int],
    reached: dict[str, int],
    max_history: int,
    problems: Problems,
) -> Any:
    """The rows of a split in file order; a position is as far as the files tell, and grows from row to row of a user."""
    table = read_table(path, str(path), ",", problems=problems)
    added = {name: (name,) for name in PLACED if name in table.columns}
    table = select(table, path, {name: (name,) for name in COLUMNS} | added)
    table = problems.without(table, pl.col("user_id") == "", braced(str(path)) + ", row {row}: the user id is empty.")
    table = problems.without(
        table,
        pl.col("user_id").str.contains(CONTROL),
        braced(str(path)) + ", row {row}: user id {user_id!r} has a tab or line break.",
    )
    table = placed(table, path, problems)
    for row in table.iter_rows(named=True):
        where = f"{path}, row {row['row']}"
        ids, wrong = _history(row, texts)
        if wrong:
            problems.add(f"{where}: {wrong}")
            continue
        position = row["position"]
        if position is None:
            position = max(len(ids), reached.get(row["user_id"], -1) + 1)
        reached[row["user_id"]] = position
        history = [item_index[item] for item in ids[-max_history:]]
        yield row["user_id"], history, item_index[row["item_id"]], row["timestamp"], position


def _history(row: dict[str, Any], texts: dict[str, tuple[str, str]]) -> tuple[list[str], str]:
    """The ids of a row's history, and what is wrong with the row, empty if nothing is."""
    try:
        values = _literal(row["history_item_id"])
    except ValueError as error:
        return [], f"history_item_id {row['history_item_id'][:60]!r} is no list ({error})."
    ids = [str(value) for value in values]
    if not ids:
        return [], "the history is empty."
    for item in (*ids, row["item_id"]):
        if item not in texts:
            return [], f"item {item!r} is not in the info file."
    for part, column, source in ((0, "title", "info"), (1, "sid", "index")):
        expected = texts[row["item_id"]][part]
        if row[f"item_{column}"] != expected:
            return (
                [],
                f"item_{column} {row[f'item_{column}']!r}, but the {source} file has {expected!r} for {row['item_id']!r}.",
            )
        listed, text = [texts[item][part] for item in ids], row[f"history_item_{column}"]
        if text == repr(listed):
            continue
        try:
            values = _literal(text)
        except ValueError as error:
            return [], f"history_item_{column} {text[:60]!r} is no list ({error})."
        if values != listed:
            entries = f"history_item_{column} has {len(values)} entries"
            return [], f"{entries} that do not agree with history_item_id and the {source} file."
    return ids, ""


def _literal(text: str) -> list[Any]:
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:80]) from None
    if not isinstance(values, list):
        raise ValueError(f"a {type(values).__name__}")
    return values


def write(dataset: Dataset, sids: Sequence[Sequence[str]], name: str, folder: Path) -> None:
    """Write a dataset in the released code's layout, for the released code to read.

    Items get their catalog numbers; if `item_id` is something else, `index/NAME.item2id` maps it.

    Args:
        sids: the token strings of each item, in catalog order.
        name: the beginning of all file names.
        folder: made if missing; files of that name are replaced.
    """
    texts = ["".join(tokens) for tokens in sids]
    titles = dataset.catalog["title"].to_list()
    for part in ("info", "index", *SPLITS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    numbers = [str(number) for number in range(len(titles))]
    item_ids = dataset.catalog["item_id"].to_list()
    info = "".join(f"{sid}\t{_single(title)}\t{number}\n" for sid, title, number in zip(texts, titles, numbers, strict=True))
    (folder / "info" / f"{name}.txt").write_text(info, encoding="utf-8", newline="\n")
    details = [column for column in CATALOG_DETAILS if column in dataset.catalog.columns]
    rows = dataset.catalog.select("title", *details).with_columns(
        **{column: pl.lit("") for column in CATALOG_DETAILS if column not in details}
    )
    items = dict(zip(numbers, rows.iter_rows(named=True), strict=True))
    (folder / "index" / f"{name}.item.json").write_text(json.dumps(items, indent=2), encoding="utf-8")
    index = {number: list(tokens) for number, tokens in zip(numbers, sids, strict=True)}
    (folder / "index" / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")
    if item_ids != numbers:
        mapping = "".join(f"{item}\t{number}\n" for item, number in zip(item_ids, numbers, strict=True))
        (folder / "index" / f"{name}.item2id").write_text(mapping, encoding="utf-8", newline="\n")
    timed = any(dataset.split(part)["timestamp"].null_count() < len(dataset.split(part)) for part in SPLITS)
    for part in SPLITS:
        with (folder / part / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow([*COLUMNS, *(PLACED if timed else ())])
            for user, history, target, timestamp, position in dataset.split(part).iter_rows():
                row = [user, [titles[item] for item in history], titles[target], history, target]
                row += [[texts[item] for item in history], texts[target]]
                writer.writerow([*row, *((timestamp, position) if timed else ())])


def _single(title: str) -> str:
    """A title as one field of one line; only white space can change."""
    return " ".join(title.split("\t")) if "\t" in title else title
