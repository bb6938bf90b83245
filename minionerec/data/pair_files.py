"""Files that bring labels: MIND's `news.tsv` and `behaviors.tsv`, and the parquet files that RecBench writes.

Both layouts are read as their publishers describe them; neither could be downloaded on the development machine, so the tests
write such files themselves.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from minionerec.config import DataConfig
from minionerec.config.pairs import PairsConfig
from minionerec.data.bad_rows import Problems, braced
from minionerec.data.checks import CONTROL, UNLISTED, make_catalog, titled
from minionerec.data.columns import CATEGORIES, DESCRIPTIONS, ITEMS, LABELS, TITLES, USERS
from minionerec.data.dataset import SplitName
from minionerec.data.pairs import PAIR_SCHEMA, Drawn, draw, qualified, valid_users
from minionerec.data.tables import read_parquet, read_table, select, text_lines
from minionerec.errors import DataError

_NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
_BEHAVIORS = ("impression", "user", "time", "history", "impressions")
_HISTORIES = ("his", "history", "histories")
_SHOWN = r"^(\S+)-([01])$"
_WHERE = "pairs.rule impressions"
_IDS = ("nid", "mid", "bid", "tid", "iid", *ITEMS)  # of items in RecBench's files
_PAIRS = ("interactions", "test", "finetune")  # RecBench's files of (user, item, label)


class LabelledFiles(NamedTuple):
    """What files of pairs hold: a catalog, what was drawn of it, and figures for the manifest."""

    catalog: pl.DataFrame
    drawn: Drawn
    figures: dict[str, int]


class _Coded(NamedTuple):
    """Users and rows with item indices in place of ids.

    Attributes:
        histories: user, history; one row a user, histories not empty.
        rows: user, candidate, label, older; users with a history, each user's rows together.
        figures: what was left out.
    """

    histories: pl.DataFrame
    rows: pl.DataFrame
    figures: dict[str, int]

    @property
    def evidence(self) -> pl.DataFrame:
        """Histories and labelled rows, as `Candidates` has them."""
        before = self.histories.select("user", item="history").explode("item")
        before = before.with_columns(label=pl.lit(1, pl.Int8), had=pl.lit(True))
        shown = self.rows.select("user", item="candidate", label=pl.col("label").cast(pl.Int8), had=pl.col("label") == 1)
        return pl.concat([before, shown]).with_columns(pl.col("item").cast(pl.Int32))

    @property
    def pairs(self) -> pl.DataFrame:
        """Every row as a pair, schema `PAIR_SCHEMA`."""
        joined = self.rows.join(self.histories, on="user", maintain_order="left")
        return joined.select(list(PAIR_SCHEMA)).cast(dict(PAIR_SCHEMA))  # type: ignore[arg-type]


def mind_files(folder: Path) -> tuple[Path, ...]:
    """`behaviors.tsv` and `news.tsv` of a folder.

    Raises:
        DataError: one is missing.
    """
    return _present(folder, ("behaviors.tsv", "news.tsv"), "MIND")


def recbench_files(folder: Path) -> tuple[Path, ...]:
    """`items.parquet`, `users.parquet`, and the splits `test.parquet`, `finetune.parquet` with their valid users, or
    `interactions.parquet`.

    Raises:
        DataError: one is missing, or there are several lists of valid users.
    """
    paths = list(_present(folder, ("items.parquet", "users.parquet"), "RecBench"))
    splits = [folder / f"{name}.parquet" for name in ("test", "finetune") if (folder / f"{name}.parquet").is_file()]
    if not splits:
        return (*paths, *_present(folder, ("interactions.parquet",), "RecBench"))
    valid = sorted(folder.glob("valid_user_set_*.txt")) if splits[-1].name == "finetune.parquet" else []
    if len(valid) > 1:
        raise DataError(
            f"{folder}: expected one valid_user_set_*.txt, found {', '.join(path.name for path in valid)}. Keep one."
        )
    return (*paths, *splits, *valid)


def _present(folder: Path, names: tuple[str, ...], layout: str) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. pairs.path is the folder that holds {layout}'s files.")
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name} here; {layout}'s folder has {' and '.join(names)}.")
    return tuple(folder / name for name in names)


def read_mind(folder: Path, config: PairsConfig, data: DataConfig, seed: int, problems: Problems) -> LabelledFiles:
    """MIND: a user's history is that of the first impression; what was shown is a like if it was clicked in any impression.

    Raises:
        DataError: a file or field is malformed, impressions have no labels, an item is not listed, or no user qualifies.
    """
    behaviors, news = mind_files(folder)
    items = read_table(news, str(news), "\t", columns=_NEWS, problems=problems)
    categories = pl.concat_str("category", "subcategory", separator=", ")
    items = items.select(
        *("row", "item_id", "title"), categories.alias("categories"), description="abstract", detail=pl.col("abstract")
    )
    catalog = titled(make_catalog(items, str(news), data, problems), problems)
    for path, columns in ((behaviors, _BEHAVIORS), (news, _NEWS)):
        if not path.read_bytes().strip():
            raise DataError(f"{path}: the file is empty. Expected rows of {', '.join(columns)}, separated by tabs.")
    table = read_table(behaviors, str(behaviors), "\t", columns=_BEHAVIORS, problems=problems)
    where = braced(str(behaviors)) + ", row {row}: "
    table = problems.without(table, pl.col("user") == "", where + "the user id is empty.")
    message = where + "user {user!r} has a tab, line break or other control character."
    table = problems.without(table, pl.col("user").str.contains(CONTROL), message)
    shown = (
        table.select("row", "user", shown=pl.col("impressions").str.split(" ")).explode("shown").filter(pl.col("shown") != "")
    )
    message = (
        where
        + "{shown!r} is no item with a label; expected such as N123-1 (clicked) or N123-0. The test split of MIND has none."
    )
    shown = problems.without(shown, ~pl.col("shown").str.contains(_SHOWN), message)
    parts = pl.col("shown").str.extract_groups(_SHOWN)
    rows = shown.select("row", "user", item=parts.struct["1"], label=parts.struct["2"].cast(pl.Int8))
    first = table.unique("user", keep="first", maintain_order=True)
    histories = first.select(
        "row", "user", history=pl.col("history").str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    )
    coded = _coded(histories, rows, catalog, (behaviors, behaviors, news), config, data)
    candidates = qualified(coded.histories, coded.rows, coded.evidence, _WHERE, coded.figures)
    return LabelledFiles(catalog, draw(candidates, config, seed), coded.figures)


def read_recbench(folder: Path, config: PairsConfig, data: DataConfig, seed: int, problems: Problems) -> LabelledFiles:
    """RecBench's parquet files, with their splits if there are any: `test`, and `finetune` with the list of its valid users.

    Raises:
        DataError: a file or column is missing, a label is neither 0 nor 1, an item or user is not listed, a user is in two
            splits, or no user qualifies.
        ConfigError: the files bring their splits, and a field is set that decides which users are drawn.
    """
    files = {path.stem: path for path in recbench_files(folder)}
    catalog = _recbench_items(files["items"], data, problems)
    histories = _recbench_users(files["users"])
    rows = {name: _recbench_rows(files[name], problems) for name in _PAIRS if name in files}
    shown = {
        name: _coded(histories, rows[name], catalog, (files[name], files["users"], files["items"]), config, data)
        for name in rows
    }
    figures = {
        f"{name}_{figure}" if len(rows) > 1 else figure: n for name, part in shown.items() for figure, n in part.figures.items()
    }
    if "interactions" in rows:
        part = shown["interactions"]
        candidates = qualified(part.histories, part.rows, part.evidence, _WHERE, figures)
        return LabelledFiles(catalog, draw(candidates, config, seed), figures)
    config.refuse_sampling(f"the splits in {folder} are given")
    valid = next((path for stem, path in files.items() if stem.startswith("valid_user_set_")), None)
    return LabelledFiles(catalog, _given(shown, valid, config, seed, folder), figures)


def _given(parts: Mapping[str, _Coded], valid: Path | None, config: PairsConfig, seed: int, folder: Path) -> Drawn:
    """The splits as the files have them, all rows; valid users are those of the list or, without one, drawn."""
    empty = pl.DataFrame(schema=PAIR_SCHEMA)
    test, rest = (parts[name].pairs if name in parts else empty for name in ("test", "finetune"))
    shared = test.join(rest, on="user", how="semi").head(1)
    if len(shared):
        raise DataError(
            f"{folder}: user {shared['user'][0]!r} is in test.parquet and in finetune.parquet; what is tuned on this user "
            "would be tested on the same one. Remove such users from finetune.parquet."
        )
    users = rest["user"].unique(maintain_order=True)
    chosen = valid_users(users.to_list(), config.valid_share, np.random.default_rng([seed, 0]))
    listed = chosen if valid is None else _listed(valid, users, folder)
    is_valid = pl.col("user").is_in(list(listed))
    splits: dict[SplitName, pl.DataFrame] = {"train": rest.filter(~is_valid), "valid": rest.filter(is_valid), "test": test}
    order = [
        frame.select("user").unique(maintain_order=True).with_columns(split=pl.lit(name)) for name, frame in splits.items()
    ]
    evidence = next(iter(parts.values())).evidence.clear() if "finetune" not in parts else parts["finetune"].evidence
    return Drawn(splits, pl.concat(order), dict.fromkeys(splits, 0), evidence.join(splits["train"], on="user", how="semi"))


def _listed(valid: Path, users: pl.Series, folder: Path) -> set[str]:
    """The users that a list names.

    Raises:
        DataError: none of them is in finetune.parquet.
    """
    named = {line.strip() for line in text_lines(valid)} - {""}
    if named.isdisjoint(users):
        first = f"the first is {min(named)!r}" if named else "it is empty"
        raise DataError(
            f"{valid}: none of its {len(named)} users is in {folder / 'finetune.parquet'} ({first}; there such as "
            f"{users.head(1).to_list()[0]!r}), so nothing would be valid. Write user ids as they stand there, a line each, or "
            "remove the list: valid users are then drawn (pairs.valid_share)."
        )
    return named


def _recbench_items(path: Path, data: DataConfig, problems: Problems) -> pl.DataFrame:
    table = read_parquet(path)
    wanted = {"item_id": _IDS, "title": (*TITLES, "detail_desc")}
    optional = {"description": DESCRIPTIONS, "categories": CATEGORIES}
    wanted |= {role: names for role, names in optional.items() if set(names) & set(table.columns)}
    items = select(table, path, wanted)
    return titled(make_catalog(items.with_columns(detail=pl.lit("")), str(path), data, problems), problems)


def _recbench_users(path: Path) -> pl.DataFrame:
    """row, user, history (lists of item ids as text)."""
    table = read_parquet(path)
    column = next((name for name in _HISTORIES if name in table.columns), None)
    if column is None or not isinstance(table.schema[column], pl.List):
        raise DataError(
            f"{path}: columns {', '.join(table.columns[1:])}; expected a column {' or '.join(_HISTORIES)} with lists of items."
        )
    if len(wrong := table.filter(pl.col(column).list.eval(pl.element().is_null()).list.any()).head(1)):
        raise DataError(f"{path}, row {wrong.item(0, 0)}: {column} has an item that is null. Give its id, or leave it out.")
    users = select(table, path, {"user": USERS}).with_columns(history=table[column].cast(pl.List(pl.String)).fill_null([]))
    if len(nameless := users.filter(user="").head(1)):
        raise DataError(f"{path}, row {nameless['row'][0]}: the user id is empty. Give it, or remove the row.")
    twice = users.filter(pl.col("user").is_duplicated()).head(1)
    if len(twice):
        raise DataError(f"{path}: user {twice['user'][0]!r} is listed twice. Keep one of the rows.")
    return users


def _recbench_rows(path: Path, problems: Problems) -> pl.DataFrame:
    """row, user, item, label."""
    rows = select(read_parquet(path), path, {"user": USERS, "item": _IDS, "label": LABELS})
    for name in ("user", "item"):
        message = f"{braced(str(path))}, row {{row}}: the {name} id is empty. Give it, or remove the row."
        rows = problems.without(rows, pl.col(name) == "", message)
    number = pl.col("label").replace({"true": "1", "false": "0"}).cast(pl.Float64, strict=False)
    message = braced(str(path)) + ", row {row}: label {label!r} is neither 0 nor 1."
    rows = problems.without(rows, ~number.is_in([0.0, 1.0]).fill_null(False), message)
    return rows.with_columns(label=number.cast(pl.Int8))


def _coded(
    histories: pl.DataFrame,
    rows: pl.DataFrame,
    catalog: pl.DataFrame,
    files: tuple[Path, Path, Path],
    config: PairsConfig,
    data: DataConfig,
) -> _Coded:
    """Ids to indices; a user's candidate counts once, as a like if any row says so.

    Args:
        histories: row, user, history (lists of ids).
        rows: row, user, item, label.
        files: of the rows, of the histories and of the items, for messages.
    """
    codes = catalog.select(item="item_id", code=pl.int_range(pl.len(), dtype=pl.Int32))
    history = histories.select("row", "user", item="history").explode("item").drop_nulls("item")
    for frame, file in zip((rows, history), files, strict=False):
        _refuse_unlisted(frame, codes, (file, files[2]), data)
    strangers = rows.join(histories, on="user", how="anti", maintain_order="left").head(1)
    if len(strangers):
        raise DataError(f"{files[0]}, row {strangers['row'][0]}: user {strangers['user'][0]!r} is not among the listed users.")
    listed = history.join(codes, on="item", maintain_order="left")
    known = listed.group_by("user", maintain_order=True).agg(history=pl.col("code").tail(config.history))
    coded = rows.join(codes, on="item", maintain_order="left")
    shown = coded.group_by("user", "code", maintain_order=True).agg(pl.col("label").max(), pl.col("row").first())
    figures = {
        "users_read": rows["user"].n_unique(),
        "users_without_history": rows.join(known, on="user", how="anti")["user"].n_unique(),
        "rows_shown_again": len(coded) - len(shown),
        UNLISTED: len(rows) - len(coded) + len(history) - len(listed),
    }
    shown = shown.join(known, on="user", how="semi", maintain_order="left")
    # Candidates of one row keep their order: which of them are drawn depends on it.
    shown = shown.sort(pl.col("row").min().over("user"), "row", maintain_order=True)
    return _Coded(known, shown.select("user", candidate="code", label="label", older=pl.lit(False)), figures)


def _refuse_unlisted(rows: pl.DataFrame, codes: pl.DataFrame, files: tuple[Path, Path], data: DataConfig) -> None:
    if data.missing_text == "drop":
        return
    unlisted = rows.join(codes, on="item", how="anti", maintain_order="left").head(1)
    if len(unlisted):
        name = re.sub(r"[\x00-\x1f\x7f]", "?", str(unlisted["item"][0]))
        row, user = unlisted["row"][0], unlisted["user"][0]
        raise DataError(
            f"{files[0]}, row {row}: item {name!r} of user {user!r} is not in {files[1]}. Add the item there, or pass "
            "--data.missing_text drop."
        )
