"""The page of `minionerec data describe`: one self-contained HTML file about a dataset, before anything is trained on it."""

from typing import Any

from minionerec.data.describe import Facts
from minionerec.report import plots
from minionerec.report.page import environment, figure

_DRAWN = ("curve", "of length")  # facts that are a plot, not a row


def table(section: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """A section as columns and rows: one column per split where its facts are given per split, otherwise one for the value."""
    plain = {name: found for name, found in section.items() if name not in _DRAWN}
    splits = {name: found for name, found in plain.items() if isinstance(found, dict) and name in ("train", "valid", "test")}
    if not splits:
        return [""], [(name, [figure(found)]) for name, found in plain.items()]
    names = list(dict.fromkeys(name for found in splits.values() for name in found if name not in _DRAWN))
    rows = [(name, [figure(found[name]) if name in found else "" for found in splits.values()]) for name in names]
    rest = [(name, [figure(found), *[""] * (len(splits) - 1)]) for name, found in plain.items() if name not in splits]
    return list(splits), rows + rest


def render(facts: Facts, name: str) -> str:
    """The page as HTML text, readable without a network."""
    lengths = {split: found["of length"] for split, found in facts["histories"].items() if "of length" in found}
    drawn = {
        "histories": plots.counts(lengths, "items in the history", "share of examples"),
        "popularity": plots.curve(facts["popularity"]["curve"], "share of items, most popular first", "share of interactions"),
    }
    return (
        environment()
        .get_template("dataset.html")
        .render(
            name=name,
            size=facts["size"],
            sections={section: table(found) for section, found in facts.items()},
            plots=drawn,
        )
    )
