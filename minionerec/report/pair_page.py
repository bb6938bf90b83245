"""Our scored pairs beside RecBench's published tables, on one page: audits, defects of the original code, what was not run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from minionerec.config import run_file
from minionerec.errors import ConfigError
from minionerec.report.page import chance, environment
from minionerec.report.pair_audit import CHANCE, RANDOM_NEGATIVES, Finding, Tables, audit, published_tables, untuned
from minionerec.report.pair_table import caption
from minionerec.report.table import NO_VALUE, Cell, Row, Table, difference, interval, share

_COLUMNS = ("AUC", "GAUC", "NDCG@5", "LRAP", "MRR-first", "LogLoss")
_DATA = {"ml-100k": "MovieLens", "ml-1m": "MovieLens", "mind": "MIND"}  # our sources, by the published column of the same kind
_SCHEMES = {"zero-shot-": "Zero-shot, Generative", "matching-": "Zero-shot, Discriminative", "yes-no-": "SFT, Generative"}
_MARK = "\N{DAGGER}"

AUDITS = {
    "wrong mean": "Overall is the mean of the data sets.",
    "near-duplicate columns": "Two data sets on which nearly all models have the same figure are probably one, reported twice.",
    "repeated row": "Two models, or one model in two tables, have the same figures to the last digit.",
    "below chance": "A model that is surely below one half knows the answer and says the opposite, or is read backwards.",
    "no spread": "All models lie within the noise of 20,000 rows: their order on this data set means nothing.",
    "random negatives": "Nobody was shown a random item, so knowing what is popular is enough.",
    "fine-tuned": (
        "On which data set each fine-tuned model gained most over zero-shot. What `-1` to `-5` were tuned on is not said: the "
        "five test sets with training rows, or five others. The gains fit both."
    ),
    "carbon": "ApC follows from AUC and CO2E. How CO2E was measured is not said, so it is compared with nothing of ours.",
}


class Defect(NamedTuple):
    """A defect of the original code, as its repositories have it, and the published rows that it touches."""

    rows: str
    text: str


DEFECTS = (
    Defect(
        "trained matching (none is in these tables)",
        "One list is extended for all rows, so all users have one text and the model learns from candidates alone.",
    ),
    Defect(
        "list-wise ranking of semantic IDs (none is in these tables)",
        "The default ranking reads logits one position late: a perfect model gets random ranks. Beams add probabilities, not "
        "their logarithms.",
    ),
    Defect("BERT-base, zero-shot generative", "It reads a token that spells [MASK] in place of the mask."),
    Defect("GPT-3.5, zero-shot generative", "Answers are mapped to 0 and 1, so most of a user's candidates are tied."),
    Defect("all of SFT", "Batches come in one order, by length, never shuffled."),
    Defect(
        "fine-tuned from a layer on",
        "States are stored after k layers and training goes on with layer k + 1: layer k is left out.",
    ),
    Defect(f"columns with {_MARK}", "A random dislike may be an item that the user liked later."),
    Defect("MovieLens", "The clean-up of titles does nothing under pandas 2."),
    Defect(
        "all ranking figures within a user",
        "Files have dislikes first and are sorted stably, so a tied like loses (score.ties last).",
    ),
)

NOT_RUN = (
    (
        "Llama-1, -2, -3, -3.1, Mistral, GLM-4, Qwen-2, Phi-2, OPT, RecGPT",
        "causal LMs: `minionerec score --score.model FOLDER`",
    ),
    ("E5-2", "a sentence encoder: `minionerec score --score.encoder FOLDER`"),
    ("BERT-base", "a masked LM cannot be asked; as a sentence-transformers folder it is a `score.encoder`"),
    ("P5", "an encoder-decoder: not built"),
    ("Recformer", "brings code of its own, which is not run"),
    ("GPT-3.5", "behind an API that gives no probabilities: not built"),
)


class PairPage(NamedTuple):
    """What the page shows.

    Attributes:
        ours: a table for each run, with its remarks.
        published: the published tables, our rows behind theirs.
        findings: of the audits.
    """

    ours: list[tuple[Table, str]]
    published: list[Table]
    findings: list[Finding]


def pair_page(boards: Mapping[str, Mapping[str, Any]]) -> PairPage:
    """The content of the page.

    Args:
        boards: leaderboards by the folder of their run, see `eval.pair_leaderboard`.
    """
    tables = published_tables()
    ours = [(_own_table(folder, board), caption(board)) for folder, board in boards.items()]
    return PairPage(ours, [_published(name, tables, boards) for name in tables.values], audit(tables))


def render(page: PairPage) -> str:
    """The page as HTML text."""
    return (
        environment().get_template("pairs.html").render(page=page, audits=AUDITS, defects=DEFECTS, not_run=NOT_RUN, mark=_MARK)
    )


def _own_table(folder: str, board: Mapping[str, Any]) -> Table:
    rows = []
    for entry in board["entries"]:
        metrics = entry["metrics"]
        cells = [interval(metrics.get(name)) if name in ("AUC", "GAUC") else share(_value(metrics, name)) for name in _COLUMNS]
        change = entry.get("against_reference", {}).get("GAUC")
        compared = NO_VALUE if change is None else _with_chance(change)
        rows.append(Row((entry["label"],), (*cells, compared)))
    split = board["split"]
    title = f"{folder}: {split['rows']:,} pairs of {split['users']:,} users, {board['settings']['split']}"
    return Table(("Score",), (*_COLUMNS, "GAUC minus like-rate"), tuple(rows), title)


def _with_chance(change: Mapping[str, Any]) -> Cell:
    cell = difference(change)
    return replace(cell, note=f"{cell.note}, {chance(change['p'])}")


def _value(metrics: Mapping[str, Any], name: str) -> float | None:
    return None if name not in metrics else metrics[name]["value"]


def _published(name: str, tables: Tables, boards: Mapping[str, Mapping[str, Any]]) -> Table:
    """A published table; below it our controls, and our rows of the same scheme, in the column of our data."""
    rows = []
    for model, values in zip(tables.models[name], tables.values[name], strict=True):
        size = tables.parameters.get(untuned(model, tables.parameters), "")
        cells = tuple(Cell(f"{value:.4f}", tone="loss" if value < CHANCE else "") for value in values.tolist())
        rows.append(Row((model, "published" + f", {size}" * bool(size)), cells))
    for folder, board in boards.items():
        column = _column(folder)
        entries = [entry for entry in board["entries"] if entry["kind"] == "control" or _scheme(entry["name"]) == name]
        for entry in entries if column in tables.columns else ():
            for metric in ("AUC", "GAUC"):
                shown = [NO_VALUE] * len(tables.columns)
                shown[tables.columns.index(column)] = interval(entry["metrics"][metric])
                rows.append(Row((entry["label"], f"ours, {metric}"), tuple(shown)))
    columns = tuple(f"{column} {_MARK}" if column in RANDOM_NEGATIVES else column for column in tables.columns)
    return Table(("Model", "Figures"), columns, tuple(rows), name)


def _scheme(row: str) -> str | None:
    return next((scheme for prefix, scheme in _SCHEMES.items() if row.startswith(prefix)), None)


def _column(folder: str) -> str:
    """The published column of the kind of data that a run is of; empty if there is none."""
    try:
        stored = run_file.load(Path(folder))
    except ConfigError:
        return ""
    pairs, data = stored.get("pairs", {}).get("source", "dataset"), stored.get("data", {}).get("source", "")
    return _DATA.get(data if pairs == "dataset" else pairs, "")
