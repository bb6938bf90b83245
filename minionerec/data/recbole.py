"""RecBole's atomic files with given splits, and the writer of its layout.

A dataset is written as `NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter` (RecBole's `benchmark_filename`, columns
user_id, item_id_list, item_id, timestamp, position), `NAME.item`, and, if the times of all interactions are known,
`NAME.inter`.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from minionerec.config import DataConfig
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.checks import PLACED, make_catalog, placed, positive_rows, rated, titled
from minionerec.data.columns import RECBOLE
from minionerec.data.dataset import CATALOG_DETAILS, SPLIT_SCHEMA, SPLITS, Dataset
from minionerec.data.folders import SPLIT_FILES, one_file, raw_files
from minionerec.data.readers import recbole_items
from minionerec.data.row_splits import by_rows
from minionerec.data.tables import read_table, select
from minionerec.data.texts import one_line
from minionerec.errors import DataError

_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\tposition:float"


def is_split(folder: Path, category: str | None) -> bool:
    """Whether a folder has the three split files, of this category, and no plain `*.inter`."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.glob("*.inter") if path.name.startswith(category or "")]
    return any(name.endswith(SPLIT_FILES[0]) for name in names) and all(name.endswith(SPLIT_FILES) for name in names)


def files(folder: Path, category: str | None) -> tuple[Path, ...]:
    """The files that are read: `*.inter` and `*.item`, or the three split files and `*.item`.

    Raises:
        DataError: no such folder, or not exactly one file of each kind.
    """
    if not is_split(folder, category):
        return raw_files("recbole", folder, category)
    return (*(one_file(folder, f".{name}.inter", category) for name in SPLITS), one_file(folder, ".item", category))


def read_splits(folder: Path, config: DataConfig, problems: Problems) -> Dataset:
    """Split files as `write` makes them, timestamp and position may be missing; or with one interaction a row.

    Raises:
        DataError: a file or column is missing, or a row names an item that is not listed (unless skipped).
    """
    *paths, item = files(folder, config.category)
    catalog = titled(make_catalog(recbole_items(item, config, problems), str(item), config, problems), problems)
    if not _lists_items(paths[0]):
        tables = [read_table(path, str(path), "\t", typed=True, problems=problems) for path in paths]
        columns = [RECBOLE.interactions(table.columns[1:], config.columns) for table in tables]
        rows = [select(table, path, wanted) for table, path, wanted in zip(tables, paths, columns, strict=True)]
        return by_rows(rows, paths, catalog, item, config, problems)
    return Dataset(catalog, *read_split_files(paths, catalog, config, problems))


def _lists_items(path: Path) -> bool:
    """Whether the header of a split file names a column of lists."""
    with path.open("rb") as stream:
        return b"item_id_list" in stream.readline()


def read_split_files(
    paths: Sequence[Path], catalog: pl.DataFrame, config: DataConfig, problems: Problems
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The train, valid and test examples of three files (user_id, item_id_list, item_id; timestamp and position may be
    missing). A row that names an item without a title or an unlisted one is left out and counted if `data.missing_text` drops
    such items.

    Raises:
        DataError: a column is missing; labels say that a row may be no interaction; or a row is wrong, unless skipped.
    """
    item_index = dict(zip(catalog["item_id"].to_list(), range(len(catalog)), strict=True))
    reached: dict[str, int] = {}  # a user's last position so far
    train, valid, test = (_read_split(path, item_index, reached, config, problems) for path in paths)
    return train, valid, test


def _read_split(
    path: Path, item_index: dict[str, int], reached: dict[str, int], config: DataConfig, problems: Problems
) -> pl.DataFrame:
    table = read_table(path, str(path), "\t", typed=True, problems=problems)
    added: dict[str, tuple[str, ...]] = {name: (name,) for name in (*PLACED, "label") if name in table.columns}
    wanted: dict[str, tuple[str, ...]] = {"user": ("user_id",), "history": ("item_id_list",), "target": ("item_id",)}
    table = select(table, path, wanted | added)
    where = braced(str(path)) + ", row {row}: "
    table = problems.without(table, pl.col("user") == "", where + "the user id is empty.")
    table = problems.without(table, pl.col("history").str.strip_chars() == "", where + "the history is empty.")
    if "label" in table.columns:
        positive_rows(rated(table, str(path), problems), str(path), None, problems)
    table = placed(table, path, problems)
    rows = []
    for row in table.iter_rows(named=True):
        items = row["history"].split()
        unknown = next((item for item in (*items, row["target"]) if item not in item_index), None)
        if unknown is not None and config.missing_text == "drop":
            problems.count("dropped_examples_unlisted", 1)
            continue
        if unknown is not None:
            problems.add(f"{path}, row {row['row']}: item {unknown!r} is not among the listed items.")
            continue
        position = row["position"]
        if position is None:
            position = max(len(items), reached.get(row["user"], -1) + 1)
        reached[row["user"]] = position
        history = [item_index[item] for item in items[-config.max_history :]]
        rows.append((row["user"], history, item_index[row["target"]], row["timestamp"], position))
    return pl.DataFrame(rows, schema=SPLIT_SCHEMA, orient="row")


def write(dataset: Dataset, name: str, folder: Path) -> None:
    """Write a dataset as RecBole's atomic files.

    Args:
        name: the beginning of all file names, RecBole's `dataset`.
        folder: made if missing; files of that name are replaced.

    Raises:
        DataError: an item id has a blank, which RecBole's lists of items cannot hold.
    """
    blank = dataset.catalog.filter(pl.col("item_id").str.contains(r"\s")).head(1)  # of any kind, as RecBole splits lists there
    if len(blank):
        raise DataError(f"item id {blank['item_id'][0]!r} has a blank, which RecBole's lists of items cannot hold. Rename it.")
    folder.mkdir(parents=True, exist_ok=True)
    details = [column for column in CATALOG_DETAILS if column in dataset.catalog.columns]
    columns = ["title", "text", *details]
    items = dataset.catalog.select("item_id", *(one_line(pl.col(column)) for column in columns))
    header = "\t".join(["item_id:token", *(f"{column}:token_seq" for column in columns)])
    _write(items, header, folder / f"{name}.item")
    ids = dataset.catalog["item_id"]
    for part in SPLITS:
        frame = dataset.split(part)
        listed = frame.select("user", pl.col("history"), "target", "timestamp", "position").with_columns(
            history=pl.col("history").list.eval(pl.element().replace_strict(list(range(len(ids))), ids)).list.join(" "),
            target=ids.gather(frame["target"]),
        )
        _write(listed, _HEADER, folder / f"{name}.{part}.inter")
    whole = dataset.interactions
    if whole is not None and not whole["timestamp"].null_count():
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        rows = whole.select("user", item=ids.gather(whole["item"]), rating="rating", timestamp="timestamp")
        _write(rows, header, folder / f"{name}.inter")


def _write(frame: pl.DataFrame, header: str, path: Path) -> None:
    # Who reads it unquotes a field that begins and ends with a quote: such a one is quoted once more.
    text = pl.col(pl.String)
    quoted = pl.lit('"') + text.str.replace_all('"', '""', literal=True) + pl.lit('"')
    frame = frame.with_columns(pl.when(~text.str.contains(r'(?s)^".*"$')).then(text).otherwise(quoted))
    body = frame.write_csv(separator="\t", include_header=False, quote_style="never", null_value="")
    path.write_text(f"{header}\n{body}", encoding="utf-8", newline="\n")
