"""`minionerec sid inspect`: a run's semantic IDs as a table for the terminal and as one self-contained page.

Inputs: data and sid of the run's folder. Output: `sid-inspect/index.html`, readable without a network. Equal inputs give equal
bytes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from rich.table import Table

from minionerec.artifacts import UNSEEDED, Manifest, Recipe, require
from minionerec.config import Config
from minionerec.data.dataset import Dataset
from minionerec.report.page import environment
from minionerec.report.page import figure as shown
from minionerec.report.plots import fragment
from minionerec.sid.index import SidIndex, token_string

_STAGE = "sid-inspect"
_TITLES = 5  # nearest titles of a first code
_MOST_ITEMS = 20_000  # drawn in the treemap; a browser draws no more in reasonable time
_LABEL = 60  # characters of a title in the treemap


def run(config: Config) -> tuple[Manifest, bool]:
    """Write the page into `<run>/sid-inspect/`, or leave it where it is current.

    Raises:
        ArtifactError: data or sid are missing or damaged.
    """
    require(config.folder / "data", "minionerec data prepare --config FILE")
    sid = require(config.folder / "sid", "minionerec sid --config FILE")
    recipe = Recipe(_STAGE, config.folder / _STAGE, {"name": config.name}, {"sid": sid.digest}, UNSEEDED)
    if (manifest := recipe.finished()) is not None:
        return manifest, False
    with recipe.write() as draft:
        (draft.path / "index.html").write_text(render(config, sid), encoding="utf-8", newline="\n")
    return Manifest.load(recipe.folder), True


def figures_table(config: Config) -> Table:
    """The figures of the run's SIDs: first those of the whole index, then those per level."""
    metrics = require(config.folder / "sid", "minionerec sid --config FILE").metrics
    table = Table(title=f"{config.name}: semantic IDs", title_justify="left")
    table.add_column("figure")
    depth = max((len(value) for value in metrics.values() if isinstance(value, list)), default=1)
    for level in range(depth):
        table.add_column("all" if not level else "", justify="right")
    for name, value in metrics.items():
        if not isinstance(value, list):
            table.add_row(name.replace("_", " "), shown(value))
    table.add_section()
    table.add_row("per level", *(f"level {level + 1}" for level in range(depth)), style="bold")
    for name, value in metrics.items():
        if isinstance(value, list):
            table.add_row(name.replace("_", " "), *map(shown, value))
    return table


def render(config: Config, sid: Manifest) -> str:
    """The page as HTML text."""
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    titles = dataset.catalog["title"].to_list()
    metrics = sid.metrics
    return (
        environment()
        .get_template("sids.html")
        .render(
            name=config.name,
            index=index,
            method=sid.config["sid"].get("method", "shipped"),
            collisions=sid.config["sid"].get("collisions", "as shipped"),
            created=sid.created,
            figures={name: value for name, value in metrics.items() if not isinstance(value, list)},
            per_level={name: value for name, value in metrics.items() if isinstance(value, list)},
            treemap=treemap(index, titles),
            left_out=max(0, len(titles) - _MOST_ITEMS),
            groups=first_codes(index, titles),
        )
    )


def treemap(index: SidIndex, titles: Sequence[str]) -> Markup:
    """The hierarchy of codes with the items' titles as leaves; a click zooms in. Of a large catalog an even sample."""
    items = np.unique(np.linspace(0, len(titles) - 1, min(len(titles), _MOST_ITEMS)).round().astype(int))
    ids, labels, parents = ["all"], ["all items"], [""]
    seen: set[str] = set()
    for item in items.tolist():
        tokens, parent = index.tokens(item), "all"
        for level, token in enumerate(tokens[:-1], 1):
            node = "".join(tokens[:level])
            if node not in seen:
                seen.add(node)
                ids.append(node)
                labels.append(token)
                parents.append(parent)
            parent = node
        ids.append(f"item {item}")
        labels.append(f"{tokens[-1]} {titles[item][:_LABEL]}")
        parents.append(parent)
    labels = [label.replace("&", "&amp;").replace("<", "&lt;") for label in labels]  # plotly reads labels as HTML
    figure = go.Figure(go.Treemap(ids=ids, labels=labels, parents=parents, maxdepth=3, tiling={"pad": 1}))
    return fragment(figure, legend=False, height=640)


def first_codes(index: SidIndex, titles: Sequence[str]) -> list[dict[str, Any]]:
    """Per first code, most items first: its token, how many items it has, and the titles nearest to their middle.

    Items stand where the centroids of their codes put them; without codebooks the first items are shown.
    """
    places = sum(book[index.codes[:, level]] for level, book in enumerate(index.codebooks))
    groups = []
    codes, counts = np.unique(index.codes[:, 0], return_counts=True)
    for code, count in sorted(zip(codes.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])):
        members = np.flatnonzero(index.codes[:, 0] == code)
        if isinstance(places, np.ndarray):
            middle = places[members].mean(axis=0)
            members = members[np.argsort(((places[members] - middle) ** 2).sum(axis=1), kind="stable")]
        shown = [titles[item] for item in members[:_TITLES]]
        groups.append({"token": token_string(0, code), "items": count, "titles": shown, "more": count - len(shown)})
    return groups
