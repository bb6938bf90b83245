"""The picture of the level tables: how often the lists hold the target's codes, level by level."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # the object interface needs no display and leaves no state behind

_COLOURS = ("#9db2ff", "#6c86ff", "#3d5afe", "#2a3fb8", "#00897b", "#00574e")


def draw_levels(levels: Mapping[str, Any], path: Path) -> None:
    """Draw `cumulative` and `independent` of `levels.json` as a PNG, whole or not at all; equal tables, equal bytes."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    figure.suptitle(f"Accuracy per SID level, {levels['rows']:,} examples")
    panels = (("cumulative", "All codes up to a level"), ("independent", "The code of one level, alone"))
    for column, (axes, (name, title)) in enumerate(zip(figure.subplots(1, 2, sharey=True), panels, strict=True)):
        for number, (k, shares) in enumerate(levels[name].items()):
            by_level = {level: share for level, share in shares.items() if level != "Exact"}  # the whole SID is no level
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot(list(by_level), list(by_level.values()), marker="o", color=colour, label=f"top {k}")
        axes.set_title(title)
        axes.set_xlabel("level of the SID")
        axes.set_ylabel("share of examples" if column == 0 else "")
        axes.set_ylim(0, 1)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", metadata={"Software": None})
    temporary.replace(path)
