"""The page of `minionerec data describe`: one self-contained HTML file about a dataset, before anything is trained on it."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from minionerec.data.describe import Facts
from minionerec.report import plots

_DRAWN = ("curve", "of length")  # facts that are a plot, not a row


def value(found: Any) -> str:
    """A fact for people: shares and other fractions with four digits, whole numbers with thousands separated."""
    if isinstance(found, dict):
        return ", ".join(f"{name} {value(inner)}" for name, inner in found.items())
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, int):
        return f"{found:,}"
    return (
        f"{found:,.4f}"
        if isinstance(found, float) and abs(found) < 1
        else f"{found:,.2f}"
        if isinstance(found, float)
        else str(found)
    )


def table(section: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """A section as columns and rows: one column per split where its facts are given per split, otherwise one for the value."""
    plain = {name: found for name, found in section.items() if name not in _DRAWN}
    splits = {name: found for name, found in plain.items() if isinstance(found, dict) and name in ("train", "valid", "test")}
    if not splits:
        return [""], [(name, [value(found)]) for name, found in plain.items()]
    names = list(dict.fromkeys(name for found in splits.values() for name in found if name not in _DRAWN))
    rows = [(name, [value(found[name]) if name in found else "" for found in splits.values()]) for name in names]
    rest = [(name, [value(found), *[""] * (len(splits) - 1)]) for name, found in plain.items() if name not in splits]
    return list(splits), rows + rest


def render(facts: Facts, name: str) -> str:
    """The page as HTML text, readable without a network."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lengths = {split: found["of length"] for split, found in facts["histories"].items() if "of length" in found}
    drawn = {
        "histories": plots.counts(lengths, "items in the history", "share of examples"),
        "popularity": plots.curve(facts["popularity"]["curve"], "share of items, most popular first", "share of interactions"),
    }
    return environment.get_template("dataset.html").render(
        name=name,
        size=facts["size"],
        sections={section: table(found) for section, found in facts.items()},
        plots=drawn,
        value=value,
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )
