"""The published tables of baselines, next to our rows; `comparison` has the table of a run."""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import NEURAL_BASELINES, RESAMPLES, BaselineConfig
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model.sequential import count_parameters, make
from minionerec.statistics.intervals import Interval, intervals
from minionerec.statistics.ranking import per_user
from minionerec.training.ranking import TABLE_CUTOFFS
from minionerec.training.ranking_data import PROTOCOLS

_SEED = 42
_LEFT_OUT = "NDCG@10, history left out"
_PUBLISHED_METRICS = {"beauty": ("HR@10", "NDCG@10", "MRR@10"), "lastfm": ("HR@10", "NDCG@10")}


def published_rows(name: str) -> dict[str, Any]:
    """A published table: its `title`, how many `items` its data has, and its `rows`.

    Raises:
        ConfigError: there is no such table.
    """
    tables = yaml.safe_load(resources.files("minionerec.baselines").joinpath("published.yaml").read_text(encoding="utf-8"))
    if name not in tables:
        raise ConfigError(
            f"baseline table {name}: no such table, and no run's folder with eval/ in it. Tables: {', '.join(tables)}."
        )
    return tables[name]


def _cell(interval: Interval, digits: int = 4) -> str:
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _target(row: dict[str, Any], metric: str) -> str:
    values = [f"{row[part][metric]:.4f}" for part in ("published", "again") if metric in row.get(part, {})]
    return " / ".join(values) or "-"


def _preset(name: str) -> BaselineConfig:
    values = yaml.safe_load(resources.files("minionerec.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return BaselineConfig(**values["baseline"])


def _our_parameters(preset: str, items: int) -> int | None:
    config = _preset(preset)
    return count_parameters(make(config, items)) if config.model in NEURAL_BASELINES else None


def published_table(name: str, runs: Path) -> Table:
    """A published table next to our results, from the runs below `runs` that are named like the presets of its rows.

    Raises:
        ConfigError: there is no such table.
        ArtifactError: a run's folder is damaged.
    """
    contents = published_rows(name)
    metrics = _PUBLISHED_METRICS[name]
    protocol = PROTOCOLS[_preset(contents["rows"][0]["preset"]).protocol]
    history = "scores of the history set to 0" if protocol.hides_history else "history kept"
    caption = (
        "Published / a later run of the same code. Ours: test, with 95 % bootstrap intervals over users. "
        f"{history.capitalize()}, but for the column that says otherwise."
    )
    table = Table(title=contents["title"], caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", overflow="fold")
    table.add_column("parameters\npublished", justify="right")
    table.add_column("ours", justify="right")
    for metric in metrics:
        table.add_column(f"{metric}\npublished", justify="right", no_wrap=True)
        table.add_column("ours [95 %]", justify="right", no_wrap=True)
    table.add_column("NDCG@10, history\nleft out, ours [95 %]", justify="right", no_wrap=True)
    table.add_column("best epoch\npublished", justify="right")
    table.add_column("ours", justify="right")
    table.add_column("s/epoch", justify="right")
    for row in contents["rows"]:
        parameters = _our_parameters(row["preset"], contents["items"])
        cells = [
            row["name"],
            f"{row['parameters']:,}" if "parameters" in row else "-",
            f"{parameters:,}" if parameters else "-",
        ]
        results, manifest = _read_results(runs / row["preset"])
        for metric in metrics:
            cells += [_target(row, metric), _cell(results[metric]) if results else "not run"]
        cells.append(_cell(results[_LEFT_OUT]) if _LEFT_OUT in results else "-")
        figures = manifest.metrics if manifest else {}
        epoch, seconds = figures.get("best_epoch"), figures.get("seconds_per_epoch")
        if manifest and manifest.config["baseline"]["weights"] is not None:
            epoch = "given weights"  # ranked, not trained here
        cells += [str(value) if value is not None else "-" for value in (row.get("best_epoch"), epoch)]
        table.add_row(*cells, f"{seconds:.1f}" if seconds is not None else "-")
    return table


def _read_results(run: Path) -> tuple[dict[str, Interval], Manifest | None]:
    """A run's test metrics with intervals, by name, and its baseline's manifest; empty and None if no baseline is finished."""
    folders = sorted(path.parent for path in (run / "baselines").glob(f"*/{MANIFEST}"))
    if not folders:
        return {}, None
    if len(folders) > 1:
        raise ArtifactError(
            f"{run / 'baselines'}: holds {len(folders)} baselines, expected only that of the preset {run.name}."
        )
    manifest = Manifest.load(folders[0])
    expected, protocol = _preset(run.name).protocol, manifest.config["baseline"]["protocol"]
    if protocol != expected:
        raise ArtifactError(
            f"{folders[0]}: ranked by the protocol {protocol}, the published rows by {expected}; they treat candidates "
            f"differently. Run it again: minionerec baseline --config {run.name} --replace"
        )
    ranks = read_parquet(folders[0] / "test.parquet", ArtifactError, "Run minionerec baseline again.")
    values = per_user(ranks["rank"].to_numpy(), TABLE_CUTOFFS)
    if "rank_left_out" in ranks.columns:  # an earlier version did not store it
        values[_LEFT_OUT] = per_user(ranks["rank_left_out"].to_numpy(), (10,))["NDCG@10"]
    return dict(zip(values, intervals(np.stack(list(values.values())), RESAMPLES, _SEED), strict=True)), manifest
