"""The published tables of baselines, next to our rows; `comparison` has the table of a run."""

import shlex
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.markup import escape
from rich.table import Table

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import NEURAL_BASELINES, RESAMPLES, BaselineConfig
from minionerec.data.parquet import read_parquet
from minionerec.errors import ArtifactError, ConfigError
from minionerec.model.sequential import count_parameters, make
from minionerec.report.published import verdict
from minionerec.statistics.intervals import Interval, intervals
from minionerec.statistics.ranking import per_user
from minionerec.training.ranking import TABLE_CUTOFFS, without_histories
from minionerec.training.ranking_data import PROTOCOLS

_SEED = 42
_LEFT_OUT = without_histories("NDCG@10")
PUBLISHED_METRICS = {"beauty": ("HR@10", "NDCG@10", "MRR@10"), "lastfm": ("HR@10", "NDCG@10")}


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


def _targets(row: dict[str, Any], metric: str) -> list[float]:
    """The published value, then that of the later run; either may be missing."""
    return [row[part][metric] for part in ("published", "again") if metric in row.get(part, {})]


def _ours(interval: Interval, targets: list[float]) -> str:
    """Our value, and below it what it says of each published one, see `verdict`."""
    words = " / ".join(verdict(interval.low, interval.high, target) for target in targets)
    return _lines(_cell(interval), words)


def _lines(*texts: str) -> str:
    """Some texts below each other, without the empty ones; a dash for none."""
    return "\n".join(filter(None, texts)) or "-"


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
    metrics = PUBLISHED_METRICS[name]
    protocol = PROTOCOLS[_preset(contents["rows"][0]["preset"]).protocol]
    history = "scores of the history set to 0" if protocol.hides_history else "history kept"
    caption = (
        "Published, and below it a later run of the same code. Ours: test, with 95 % bootstrap intervals over users, which "
        "contain the published value (within noise) or lie below or above it; a second word is on the later run. "
        f"{history.capitalize()}, but for the column that says otherwise."
    )
    results = {row["preset"]: _read_results(runs / row["preset"]) for row in contents["rows"]}
    absent = {row["preset"]: row["name"] for row in contents["rows"] if not results[row["preset"]][0]}
    caption = "\n".join([caption, *_not_run(absent, runs)])
    table = Table(
        title=contents["title"], caption=escape(caption), title_justify="left", caption_justify="left", show_lines=True
    )
    table.add_column("row", overflow="fold")
    table.add_column("parameters\npublished\nours", justify="right", no_wrap=True)
    for metric in metrics:
        table.add_column(f"{metric}\npublished", justify="right", no_wrap=True)
        table.add_column("ours [95 %]", justify="right", no_wrap=True)
    table.add_column("NDCG@10, history\nleft out, ours [95 %]", justify="right", no_wrap=True)
    table.add_column("best epoch\npublished\nours", justify="right", no_wrap=True)
    table.add_column("s/epoch", justify="right", no_wrap=True)
    for row in contents["rows"]:
        parameters = _our_parameters(row["preset"], contents["items"])
        table.add_row(row["name"], _two(row.get("parameters"), parameters), *_cells(row, *results[row["preset"]], metrics))
    return table


def _cells(
    row: dict[str, Any], ours: dict[str, Interval], manifest: Manifest | None, metrics: tuple[str, ...]
) -> Iterator[str]:
    """A row from its first metric on."""
    for metric in metrics:
        targets = _targets(row, metric)
        yield _lines(*(f"{target:.4f}" for target in targets))
        yield _ours(ours[metric], targets) if ours else "not run"
    yield _cell(ours[_LEFT_OUT]) if _LEFT_OUT in ours else "-"
    figures = manifest.metrics if manifest else {}
    given = manifest is not None and manifest.config["baseline"]["weights"] is not None  # ranked, not trained here
    yield _two(row.get("best_epoch"), "given weights" if given else figures.get("best_epoch"))
    seconds = figures.get("seconds_per_epoch")
    yield f"{seconds:.1f}" if seconds is not None else "-"


def _two(published: int | None, ours: int | str | None) -> str:
    """A published count and ours below it."""
    return "\n".join("-" if value is None else f"{value:,}" if isinstance(value, int) else value for value in (published, ours))


def _not_run(absent: dict[str, str], runs: Path) -> list[str]:
    """Lines on the rows without a run, named by their presets, and the command that makes them."""
    if not absent:
        return []
    out = f"{shlex.quote(str(runs))}/$preset"
    return [
        f"Not run: {', '.join(absent.values())}.",
        f"for preset in {' '.join(absent)}; do minionerec baseline --config $preset --out {out}; done",
        f"(reads {_preset(next(iter(absent))).sequences}; --baseline.sequences FILE names another)",
    ]


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
