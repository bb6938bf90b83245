"""`minionerec sid inspect`: the semantic IDs of a run as a table for the terminal and as one self-contained page.

Inputs: data and sid of the run's folder. Output: `sid-inspect/index.html`, readable without a network. Equal inputs give equal
bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from minionerec.artifacts import UNSEEDED, Manifest, Recipe, require
from minionerec.config import Config, run_file
from minionerec.data.dataset import Dataset
from minionerec.report.page import environment, figure
from minionerec.report.plots import fragment, new_figure
from minionerec.report.table import Row, number
from minionerec.report.table import Table as PageTable
from minionerec.sid.index import SidIndex, token_string

_STAGE = "sid-inspect"
_TITLES = 5  # nearest titles of a first code
_MOST_ITEMS = 20_000  # drawn in the treemap; a browser draws no more in reasonable time
_LABEL = 60  # characters of a title in the treemap


def write_sid_page(config: Config) -> tuple[Manifest, bool]:
    """Write the page into `<run>/sid-inspect/`, unless it is current.

    Returns:
        The page's manifest, and whether it was written now.

    Raises:
        ArtifactError: data or sid are missing or damaged.
    """
    require(config.folder / "data", "minionerec data prepare --config FILE")
    sid = require(config.folder / "sid", "minionerec sid --config FILE")
    recipe = Recipe(
        _STAGE,
        config.folder / _STAGE,
        {"name": run_file.name_of(config)},
        {"sid": sid.digest},
        UNSEEDED,
        replace=config.replace,
        wait=config.wait,
        reread=lambda: {"sid": require(config.folder / "sid", "minionerec sid --config FILE").digest},
    )

    def write() -> None:
        with recipe.write() as draft:
            (draft.path / "index.html").write_text(render_sid_page(config, sid), encoding="utf-8", newline="\n")

    return recipe.make(write)


def figures_table(config: Config) -> Table:
    """The figures of the run's SIDs: first of the whole index, then per level."""
    metrics = require(config.folder / "sid", "minionerec sid --config FILE").metrics
    table = Table(title=escape(f"{run_file.name_of(config)}: semantic IDs"), title_justify="left")
    table.add_column("figure")
    depth = max((len(value) for value in metrics.values() if isinstance(value, list)), default=1)
    for level in range(depth):
        table.add_column("all" if not level else "", justify="right")
    for name, value in metrics.items():
        if not isinstance(value, list):
            table.add_row(name.replace("_", " "), figure(value))
    table.add_section()
    table.add_row("per level", *(f"level {level + 1}" for level in range(depth)), style="bold")
    for name, value in metrics.items():
        if isinstance(value, list):
            table.add_row(name.replace("_", " "), *map(figure, value))
    return table


def render_sid_page(config: Config, sid: Manifest) -> str:
    """The page as HTML text."""
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    titles = dataset.catalog["title"].to_list()
    metrics = sid.metrics
    return (
        environment()
        .get_template("sids.html")
        .render(
            name=run_file.name_of(config),
            index=index,
            method=sid.config["sid"].get("method", "shipped"),
            collisions=sid.config["sid"].get("collisions", "as shipped"),
            created=sid.created,
            figures={name: value for name, value in metrics.items() if not isinstance(value, list)},
            per_level=_level_table(index.levels, {name: value for name, value in metrics.items() if isinstance(value, list)}),
            treemap=treemap(index, titles),
            left_out=max(0, len(titles) - _MOST_ITEMS),
            groups=first_codes(index, titles),
        )
    )


def _level_table(levels: int, figures: Mapping[str, Sequence[Any]]) -> PageTable:
    rows = tuple(Row((name.replace("_", " "),), tuple(map(number, values))) for name, values in figures.items())
    return PageTable(("Per level",), tuple(str(level + 1) for level in range(levels)), rows)


def treemap(index: SidIndex, titles: Sequence[str]) -> Markup:
    """The hierarchy of codes with the items' titles as leaves; a click zooms in. A large catalog is sampled evenly."""
    items = np.unique(np.linspace(0, len(titles) - 1, min(len(titles), _MOST_ITEMS)).round().astype(int))
    ids, labels, parents = ["all"], ["all items"], [""]
    nodes: set[str] = set()
    for item in items.tolist():
        tokens, parent = index.tokens(item), "all"
        for level, token in enumerate(tokens[:-1], 1):
            node = "".join(tokens[:level])
            if node not in nodes:
                nodes.add(node)
                ids.append(node)
                labels.append(token)
                parents.append(parent)
            parent = node
        ids.append(f"item {item}")
        labels.append(f"{tokens[-1]} {titles[item][:_LABEL]}")
        parents.append(parent)
    labels = [label.replace("&", "&amp;").replace("<", "&lt;") for label in labels]  # plotly reads labels as HTML
    tiles = go.Treemap(ids=ids, labels=labels, parents=parents, maxdepth=3, tiling={"pad": 1})
    return fragment(new_figure(tiles), legend=False, height=640)


@dataclass(frozen=True)
class FirstCode:
    """A first code: its token, how many items have it, some of their titles, and how many more there are."""

    token: str
    items: int
    titles: list[str]
    more: int


def first_codes(index: SidIndex, titles: Sequence[str]) -> list[FirstCode]:
    """The first codes, those with most items first, with the titles that are nearest to the mean of the code's items.

    An item's position is the sum of its codes' centroids. Without codebooks the first titles are shown.
    """
    positions = sum(book[index.codes[:, level]] for level, book in enumerate(index.codebooks))
    groups = []
    codes, counts = np.unique(index.codes[:, 0], return_counts=True)
    for code, count in sorted(zip(codes.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])):
        members = np.flatnonzero(index.codes[:, 0] == code)
        if isinstance(positions, np.ndarray):
            mean = positions[members].mean(axis=0)
            members = members[np.argsort(((positions[members] - mean) ** 2).sum(axis=1), kind="stable")]
        nearest = [titles[item] for item in members[:_TITLES]]
        groups.append(FirstCode(token_string(0, code), count, nearest, count - len(nearest)))
    return groups
