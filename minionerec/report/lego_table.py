"""What the content recommenders of a run cost: size, time and emissions next to their AUC."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import LegoConfig
from minionerec.statistics.pair_metrics import apc


def cost_rows(run: Path, task: str) -> list[dict[str, Any]]:
    """One row for every recipe that was trained in a run.

    Args:
        task: `lists` or `pairs`.

    Returns:
        dictionaries with title, parts, parameters, epochs, `minutes`, `cpu_seconds`, `auc` (of the scored pairs, or of the
        targets among all items; None if the recipe, as it was trained last, has not been scored), `grams_co2e`, `apc` (None if
        unknown, or at an AUC up to one half) and `emissions` (how they are known).
    """
    rows = []
    for path in sorted((run / "lego" / task).glob(f"*/{MANIFEST}")):
        manifest = Manifest.load(path.parent)
        title = path.parent.name
        metrics = manifest.metrics
        auc = metrics["test AUC"] if task == "lists" else _auc_of_pairs(run, title, manifest)
        grams = metrics.get("grams_co2e")
        rows.append(
            {
                "title": title,
                "parts": str(LegoConfig.of_manifest(manifest.config["lego"]).parts),
                "parameters": metrics["parameters"],
                "epochs": metrics["epochs"],
                "minutes": metrics["wall_seconds"] / 60,
                "cpu_seconds": metrics["cpu_seconds"],
                "auc": auc,
                "grams_co2e": grams,
                "apc": None if auc is None or grams is None else apc(auc, grams),
                "emissions": metrics.get("emissions"),
            }
        )
    return rows


def _auc_of_pairs(run: Path, title: str, trained: Manifest) -> float | None:
    """The AUC of the pairs that this very model has scored."""
    folder = run / "scoring" / f"lego-{title}"
    scored = Manifest.load(folder) if (folder / MANIFEST).is_file() else None
    return scored.metrics["AUC"] if scored and scored.inputs[f"lego/pairs/{title}"] == trained.digest else None


def cost_table(run: Path, task: str) -> Table:
    """`cost_rows` for the screen."""
    rows = cost_rows(run, task)
    title = f"What training took; AUC of {'the scored pairs' if task == 'pairs' else 'the targets of test among all items'}"
    notes = sorted({row["emissions"] for row in rows if row["emissions"]})
    lines = [f"Emissions {note}." for note in notes]
    if notes:
        lines.append("ApC: (AUC in percent - 50) per gram CO2e, times 100; comparable within this table only.")
    else:
        lines.append("For emissions and ApC train with green.country (extra green), or green.watts and green.grams_per_kwh.")
    table = Table(title=title, title_justify="left", caption=escape("\n".join(lines)), caption_justify="left")
    table.add_column("recipe", no_wrap=True)
    for column in ("parts", "parameters", "epochs", "minutes", "CPU s", "AUC", "g CO2e", "ApC"):
        table.add_column(column, justify="left" if column == "parts" else "right", no_wrap=True)
    for row in rows:
        numbers = (f"{row['parameters']:,}", str(row["epochs"]), f"{row['minutes']:.1f}", f"{row['cpu_seconds']:.0f}")
        figures = (_figure(row["auc"], ".4f"), _figure(row["grams_co2e"], ".3g"), _figure(row["apc"], ",.0f"))
        table.add_row(row["title"], row["parts"], *numbers, *figures)
    return table


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
