"""The page of `minionerec data describe`: one self-contained HTML file about a dataset, before anything is trained on it."""

from typing import Any

from minionerec.data.describe import Facts
from minionerec.report import plots
from minionerec.report.page import environment
from minionerec.report.table import NO_VALUE, Row, Table, number

_PLOTTED = ("curve", "of length")  # facts that the page plots instead of giving them a row


def facts_table(facts: dict[str, Any]) -> Table:
    """A section of the facts: one column per split if its facts are given per split, otherwise one for the value."""
    plain = {name: value for name, value in facts.items() if name not in _PLOTTED}
    splits = {name: value for name, value in plain.items() if isinstance(value, dict) and name in ("train", "valid", "test")}
    if not splits:
        return Table(("",), ("",), tuple(Row((name,), (number(value),)) for name, value in plain.items()))
    names = dict.fromkeys(name for values in splits.values() for name in values if name not in _PLOTTED)
    rows = [Row((name,), tuple(number(values.get(name)) for values in splits.values())) for name in names]
    for name, value in plain.items():
        if name not in splits:
            rows.append(Row((name,), (number(value), *[NO_VALUE] * (len(splits) - 1))))
    return Table(("",), tuple(splits), tuple(rows))


def render_dataset_page(facts: Facts, name: str) -> str:
    """The page as HTML text, readable without a network."""
    lengths = {split: values["of length"] for split, values in facts["histories"].items() if "of length" in values}
    return (
        environment()
        .get_template("dataset.html")
        .render(
            name=name,
            size=facts["size"],
            sections={section: facts_table(values) for section, values in facts.items()},
            plots={
                "histories": plots.counts(lengths, "items in the history", "share of examples"),
                "popularity": plots.curve(
                    facts["popularity"]["curve"], "share of items, most popular first", "share of interactions"
                ),
            },
        )
    )
