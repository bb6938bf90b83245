"""Baselines beside what they are compared with: a published table, or the generative model of a run.

Metrics are those of `eval.metrics`, from exact ranks; the mean reciprocal rank, which only the Beauty table reports, is here.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from rich.markup import escape
from rich.table import Table

from minionerec.artifacts import MANIFEST, Manifest, content_hash, is_current, require, write_artifact, write_json
from minionerec.baselines.models import MODELS, count_parameters, make
from minionerec.config import CUTOFFS, BaselineConfig, Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.intervals import Interval, intervals, paired
from minionerec.eval.metrics import hits, measure, per_user, ranks
from minionerec.eval.predictions import as_predictions, read_predictions, write_predictions
from minionerec.sid.index import SidIndex

_RESAMPLES, _SEED = 2000, 42
_TABLE_CUTOFFS = (1, 5, 10, 20)
_SHOWN = {"beauty": ("HR@10", "NDCG@10", "MRR@10"), "lastfm": ("HR@10", "NDCG@10")}


def reciprocals(ranks: np.ndarray, k: int) -> np.ndarray:
    """MRR@k per user, (users,): 1 / (rank + 1) where the 0-based rank is below k, else 0."""
    return hits(ranks, k) / (np.where(np.isfinite(ranks), ranks, 0.0) + 1.0)


def values_per_user(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """HR, NDCG and MRR at 1, 5, 10 and 20 per user, by name."""
    return per_user(ranks, _TABLE_CUTOFFS) | {f"MRR@{k}": reciprocals(ranks, k) for k in _TABLE_CUTOFFS}


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """The means of `values_per_user`."""
    return {name: float(values.mean()) for name, values in values_per_user(ranks).items()}


def evaluate(config: Config) -> tuple[Manifest, bool]:
    """The run's baseline as predictions and metrics in `eval/<model>/`, beside those of the generative model.

    Returns:
        the manifest, and whether it was made anew.

    Raises:
        ArtifactError: the run has no data, no SIDs, or no such baseline made from this data.
    """
    name = config.baseline.model
    folder = config.folder / "eval" / name
    inputs = {stage: require(config.folder / stage, f"minionerec {stage}").digest for stage in ("data", "sid")}
    baseline = require(config.folder / "baselines" / name, "minionerec baseline", made_from={"data": inputs["data"]})
    inputs[baseline.stage] = baseline.digest
    sections = config.section("eval")
    key = content_hash({"config": sections, "seed": config.seed, "inputs": inputs})
    if is_current(folder, key):
        return Manifest.load(folder), False
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    lists = pl.read_parquet(config.folder / "baselines" / name / f"{config.eval.split}.parquet")["items"].to_list()
    rankings = [np.array(one[: config.eval.num_beams], dtype=np.int64) for one in lists]
    predictions = as_predictions(dataset.split(config.eval.split), rankings, index)
    metrics = measure(predictions, CUTOFFS, config.eval.resamples, config.seed)
    with write_artifact(folder, stage=f"eval/{name}", key=key, config=sections, inputs=inputs, seed=config.seed) as draft:
        write_predictions(draft.path / "predictions.jsonl", predictions)
        write_json(draft.path / "metrics.json", metrics)
        draft.metrics.update({metric: cell["value"] for metric, cell in metrics["sid"].items()})
    return Manifest.load(folder), True


def published(name: str) -> dict[str, Any]:
    """A published table: its title and rows.

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
    shown = [f"{row[part][metric]:.4f}" for part in ("published", "again") if metric in row.get(part, {})]
    return " / ".join(shown) or "-"


def _own_parameters(preset: str, items: int) -> int | None:
    values = yaml.safe_load(resources.files("minionerec.presets").joinpath(f"{preset}.yaml").read_text(encoding="utf-8"))
    config = BaselineConfig(**values["baseline"])
    return count_parameters(make(config, items)) if config.model in MODELS else None


def published_table(name: str, runs: Path) -> Table:
    """Each row of a published table beside ours, where a run named like its preset is finished below `runs`.

    Raises:
        ConfigError: there is no such table.
        ArtifactError: a run's folder is damaged.
    """
    found = published(name)
    shown = _SHOWN[name]
    caption = "Published / a later run of the same code. Ours: test, with 95 % bootstrap intervals over users."
    table = Table(title=found["title"], caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", overflow="fold")
    table.add_column("parameters\npublished", justify="right")
    table.add_column("ours", justify="right")
    for metric in shown:
        table.add_column(f"{metric}\npublished", justify="right", no_wrap=True)
        table.add_column("ours [95 %]", justify="right", no_wrap=True)
    table.add_column("best epoch\npublished", justify="right")
    table.add_column("ours", justify="right")
    table.add_column("s/epoch", justify="right")
    for row in found["rows"]:
        own = _own_parameters(row["preset"], found["items"])
        cells = [row["name"], f"{row['parameters']:,}" if "parameters" in row else "-", f"{own:,}" if own else "-"]
        measured, manifest = _measured(runs / row["preset"])
        for metric in shown:
            cells += [_target(row, metric), _cell(measured[metric]) if measured else "not run"]
        figures = manifest.metrics if manifest else {}
        epoch, seconds = figures.get("best_epoch"), figures.get("seconds_per_epoch")
        cells += [str(value) if value is not None else "-" for value in (row.get("best_epoch"), epoch)]
        table.add_row(*cells, f"{seconds:.1f}" if seconds is not None else "-")
    return table


def _measured(run: Path) -> tuple[dict[str, Interval], Manifest | None]:
    """A run's test metrics with intervals, by name, and its baseline's manifest; empty and None where nothing is finished."""
    folders = sorted(path.parent for path in (run / "baselines").glob(f"*/{MANIFEST}"))
    if not folders:
        return {}, None
    if len(folders) > 1:
        raise ArtifactError(f"{run / 'baselines'}: holds {len(folders)} baselines, expected the one of the preset {run.name}.")
    manifest = Manifest.load(folders[0])
    values = values_per_user(pl.read_parquet(folders[0] / "test.parquet")["rank"].to_numpy())
    found = intervals(np.stack(list(values.values())), _RESAMPLES, _SEED)
    return dict(zip(values, found, strict=True)), manifest


def run_table(run: Path) -> Table:
    """Everything evaluated in a run, best NDCG@10 first, with paired differences from its generative model.

    Raises:
        ArtifactError: the run has no generative model's predictions, or two were measured on different users.
    """
    folders = sorted(path.parent for path in (run / "eval").glob(f"*/{MANIFEST}"))
    model = next((name for name in ("rl", "sft") if run / "eval" / name in folders), None)
    found = {}
    for folder in folders:
        predictions = read_predictions(folder / "predictions.jsonl")
        found[folder.name] = {one.user: value for one, value in zip(predictions, ranks(predictions, "item"), strict=True)}
    if not found:
        raise ArtifactError(f"{run / 'eval'}: nothing evaluated here. Run minionerec eval and minionerec baseline first.")
    users = list(next(iter(found.values())))
    for name, own in found.items():
        if own.keys() != set(users):
            raise ArtifactError(f"{run / 'eval' / name}: other users than in eval/{folders[0].name}. Run the eval stage again.")
    values = {name: per_user(np.array([own[user] for user in users]), (1, 10)) for name, own in found.items()}
    table = Table(title=escape(f"{run}, {len(users):,} users, on items, 95 % intervals"), title_justify="left")
    table.add_column("recommender", no_wrap=True)
    for metric in ("HR@1", "HR@10", "NDCG@10"):
        table.add_column(metric, justify="right", no_wrap=True)
    if model:
        table.add_column(f"NDCG@10 minus {model}, paired", justify="right", no_wrap=True)
    for name in sorted(values, key=lambda one: -values[one]["NDCG@10"].mean()):
        three = intervals(np.stack([values[name][metric] for metric in ("HR@1", "HR@10", "NDCG@10")]), _RESAMPLES, _SEED)
        cells = [_cell(one) for one in three]
        if model:
            first, second = values[model]["NDCG@10"][None], values[name]["NDCG@10"][None]
            cells.append("-" if name == model else _cell(paired(first, second, _RESAMPLES, _SEED)[0]))
        table.add_row(name, *cells)
    return table


def table(name: str, runs: Path) -> Table:
    """The table of that name, or the comparison within the run whose folder it is.

    Raises:
        ConfigError: neither.
        ArtifactError: see `published_table` and `run_table`.
    """
    return run_table(Path(name)) if (Path(name) / "eval").is_dir() else published_table(name, runs)
