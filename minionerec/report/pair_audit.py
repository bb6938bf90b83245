"""What published tables of AUC or GAUC by data set say about themselves: figures that cannot be right, or mean little.

A file holds `columns` (data sets, then `Overall`) and `tables`: by name, rows of `model` and `values`; perhaps `parameters` by
model, and `green`: rows of `model`, `items` and AUC, NDCG@5 and ApC as `values`. `recbench.json` holds the tables of RecBench's
authors.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from minionerec.errors import DataError
from minionerec.statistics.pair_metrics import apc

Rows = Sequence[Mapping[str, object]]
ROWS = 20_000  # test rows of each data set, half of them likes at best
RANDOM_NEGATIVES = ("MicroLens", "Steam", "H&M")  # whose dislikes are random items (RecBench's repository)
_OVERALL = "Overall"
_ROUNDING = 0.5e-4  # of four decimals
_PERCENT_ROUNDING = 0.005  # of two decimals
_NEAR, _MOST = 0.006, 0.9  # columns are near-duplicates if so many rows differ by no more
_POWER = 2.8  # standard errors that a test finds with 80 % power
_FINE_TUNED = re.compile(r"-\d+$")  # `BERT-base-1` is `BERT-base`, tuned on the first of several sets


class Finding(NamedTuple):
    """Something that a table says about itself.

    Attributes:
        audit: which rule found it.
        table: of the tables.
        text: a sentence.
    """

    audit: str
    table: str
    text: str


class Tables(NamedTuple):
    """Published tables.

    Attributes:
        columns: names of the columns.
        models, values: by table the models, and their values (rows, columns).
        parameters: of a model, as text.
        green: rows with `model`, `items`, `values` (AUC and NDCG@5 in percent, and ApC) and perhaps `CO2E`.
    """

    columns: list[str]
    models: dict[str, list[str]]
    values: dict[str, np.ndarray]
    parameters: Mapping[str, str] = {}
    green: Sequence[Mapping[str, Any]] = ()

    @property
    def sets(self) -> list[int]:
        """The columns that are data sets."""
        return [place for place, name in enumerate(self.columns) if name != _OVERALL]


def published_tables() -> Tables:
    """The tables of RecBench's authors, which the package ships."""
    with resources.as_file(resources.files("minionerec.report") / "recbench.json") as path:
        return read_tables(path)


def read_tables(path: Path) -> Tables:
    """Read a file of tables.

    Raises:
        DataError: it is missing or no such file; the message names the table and the row.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        columns, tables = content["columns"], dict(content["tables"])
        parameters, green = content.get("parameters", {}), content.get("green", {"rows": []})["rows"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file with columns and tables ({error!r}).") from None
    _refuse_columns(columns, path)
    if not any(tables.values()):
        raise DataError(f"{path}: its tables have no rows. Expected rows of a model and {len(columns)} numbers from 0 to 1.")
    models, values = {}, {}
    for name, rows in tables.items():
        for number, row in enumerate(rows if isinstance(rows, list) else [None], 1):
            figures = row.get("values") if isinstance(row, dict) and "model" in row else None
            if not _fits(figures, len(columns)):
                where, wanted = f"{path}, table {name!r}, row {number}", f"a model and {len(columns)} numbers from 0 to 1"
                raise DataError(f"{where}: expected {wanted}, found {str(row)[:100]}.")
        models[name] = [str(row["model"]) for row in rows]
        values[name] = np.array([row["values"] for row in rows], dtype=float).reshape(len(rows), len(columns))
    for number, row in enumerate(green if isinstance(green, list) else [None], 1):
        if not (isinstance(row, dict) and "model" in row and "items" in row and _are_numbers(row.get("values"), 3)):
            wanted = "model, items, and values of AUC, NDCG@5 and ApC"
            raise DataError(f"{path}, green, row {number}: expected {wanted}, found {str(row)[:100]}.")
    return Tables(columns, models, values, parameters, green)


def _refuse_columns(columns: object, path: Path) -> None:
    """Refuse columns that are no list of distinct names, or that name no data set."""
    names = columns if isinstance(columns, list) and all(isinstance(name, str) for name in columns) else []
    if not set(names) - {_OVERALL} or len(set(names)) < len(names):
        raise DataError(
            f"{path}: columns is {str(columns)[:100]}; expected a list of distinct names of data sets, then maybe {_OVERALL!r}."
        )


def _fits(figures: object, count: int) -> bool:
    """Whether a row's values are so many numbers from 0 to 1."""
    return _are_numbers(figures, count) and all(0 <= value <= 1 for value in cast(list[float], figures))


def _are_numbers(figures: object, count: int) -> bool:
    return isinstance(figures, list) and len(figures) == count and all(type(value) in (int, float) for value in figures)


def standard_error(rows: int = ROWS) -> float:
    """The standard deviation of the AUC of a score that knows nothing, half of the rows likes (Mann and Whitney, 1947).

    >>> round(standard_error(), 4)
    0.0041
    """
    half = rows / 2
    return math.sqrt((rows + 1) / (12 * half * half))


CHANCE = 0.5 - _POWER * standard_error()  # a figure below this is below one half by more than noise


def untuned(model: str, known: Collection[str]) -> str:
    """The model that a row is of, without the number of what it was tuned on.

    >>> untuned("BERT-base-1", ["BERT-base"]), untuned("Llama-3", ["Llama-3"])
    ('BERT-base', 'Llama-3')

    Args:
        known: names of models as they are, some of which end in a number.
    """
    return model if model in known else _FINE_TUNED.sub("", model)


def audit(tables: Tables) -> list[Finding]:
    """All findings, audit by audit."""
    rules = (
        *(wrong_means, near_duplicates, repeated_rows, below_chance, no_spread, random_negatives, worse_than_untrained),
        carbon,
    )
    return [finding for rule in rules for finding in rule(tables)]


def wrong_means(tables: Tables) -> Iterator[Finding]:
    """Rows whose Overall is not the mean of the data sets, within rounding."""
    if _OVERALL not in tables.columns:
        return
    place = tables.columns.index(_OVERALL)
    for name, values in tables.values.items():
        for model, row in zip(tables.models[name], values, strict=True):
            mean = float(row[tables.sets].mean())
            if abs(mean - row[place]) > 2 * _ROUNDING + 1e-9:
                text = f"{model}: Overall is {row[place]:.4f}, but the mean of the {len(tables.sets)} data sets is {mean:.4f}."
                yield Finding("wrong mean", name, text)


def near_duplicates(tables: Tables) -> Iterator[Finding]:
    """Pairs of data sets on which nearly all models have the same figure: one may be a copy of the other."""
    for name, values in tables.values.items():
        if len(values) < 3:
            continue
        for first, second in combinations(tables.sets, 2):
            differences = np.abs(values[:, first] - values[:, second])
            close = differences[differences <= _NEAR + 1e-9]
            if len(close) >= _MOST * len(values):
                pair = f"{tables.columns[first]} and {tables.columns[second]}"
                text = f"{pair} differ by at most {close.max():.4f} in {len(close)} of {len(values)} rows."
                yield Finding("near-duplicate columns", name, text)


def repeated_rows(tables: Tables) -> Iterator[Finding]:
    """Rows with equal figures, in one table or in two."""
    rows = [
        (name, model, row)
        for name, values in tables.values.items()
        for model, row in zip(tables.models[name], values, strict=True)
    ]
    for (name, model, row), (other, again, same) in combinations(rows, 2):
        if np.array_equal(row, same):
            yield Finding("repeated row", name, f"{model} has the same figures as {again} in {other!r}.")


def below_chance(tables: Tables) -> Iterator[Finding]:
    """Cells below one half by more than noise: such a model knows the answer and says the opposite."""
    for name, values in tables.values.items():
        low = [
            f"{tables.models[name][row]} on {tables.columns[column]} {values[row, column]:.4f}"
            for row, column in product(range(len(values)), tables.sets)
            if values[row, column] < CHANCE
        ]
        if low:
            yield Finding("below chance", name, f"{len(low)} cells are below {CHANCE:.4f}: {'; '.join(low)}.")


def no_spread(tables: Tables) -> Iterator[Finding]:
    """Data sets on which all models lie within the noise of one: their order means nothing."""
    bound = _POWER * standard_error()
    for name, values in tables.values.items():
        for column in tables.sets if len(values) > 1 else ():
            spread = float(np.ptp(values[:, column]))
            if spread < bound:
                text = f"{tables.columns[column]}: all {len(values)} models lie within {spread:.4f}, which is noise."
                yield Finding("no spread", name, text)


def random_negatives(tables: Tables) -> Iterator[Finding]:
    """Data sets whose dislikes are random items: their figures measure popularity."""
    named = [tables.columns[column] for column in tables.sets if tables.columns[column] in RANDOM_NEGATIVES]
    if named:
        text = f"{', '.join(named)}: dislikes are random items, so the figures measure popularity."
        yield Finding("random negatives", "all", text)


def worse_than_untrained(tables: Tables) -> Iterator[Finding]:
    """Fine-tuned models below the same model zero-shot, by more than noise; and where each gained most."""
    untrained = next((name for name in tables.values if re.search("zero-shot, gen", name, re.IGNORECASE)), None)
    for name, values in tables.values.items():
        if untrained is None or not name.upper().startswith("SFT"):
            continue
        for model, row in zip(tables.models[name], values, strict=True):
            base = untuned(model, tables.models[untrained])
            if base not in tables.models[untrained]:
                continue
            gains = row - tables.values[untrained][tables.models[untrained].index(base)]
            losses = [column for column in tables.sets if gains[column] < -_POWER * math.sqrt(2) * standard_error()]
            best = max(tables.sets, key=lambda column: gains[column])
            told = f"{model} gains most on {tables.columns[best]} ({gains[best]:+.4f})"
            lost = ", ".join(f"{tables.columns[column]} ({gains[column]:+.4f})" for column in losses)
            yield Finding("fine-tuned", name, f"{told}" + (f" and is below zero-shot on {lost}." if lost else "."))


def carbon(tables: Tables) -> Iterator[Finding]:
    """Rows whose ApC does not follow from their AUC and CO2E; and the CO2E that the others imply, which nobody states."""
    implied = []
    for row in tables.green:
        auc, _, stated_apc = row["values"]
        name = f"{row['model']}, {row['items']}"
        if auc <= 50 or stated_apc <= 0:
            yield Finding("carbon", "green", f"{name}: AUC {auc:.2f} is not above 50, so an ApC means nothing.")
            continue
        low, high = ((auc - 50 - slip) / (stated_apc + slip) * 100 for slip in (_PERCENT_ROUNDING, -_PERCENT_ROUNDING))
        if "CO2E" in row and not low <= row["CO2E"] <= high:
            expected = apc(auc / 100, row["CO2E"])
            yield Finding("carbon", "green", f"{name}: ApC is {stated_apc:.2f}, but AUC and CO2E give {expected:.2f}.")
        elif "CO2E" not in row:
            implied.append(f"{name} {low:.1f} to {high:.1f}")
    if implied:
        text = f"CO2E is not given; ApC and AUC, as rounded, imply {'; '.join(implied)}. Compare within this table alone."
        yield Finding("carbon", "green", text)
