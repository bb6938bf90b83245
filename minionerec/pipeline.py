"""Runs stages in order. A stage whose config and inputs are unchanged is skipped."""

import os
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from minionerec.artifacts import Manifest, is_main_process, read_json, wait_for_everyone
from minionerec.config import CUTOFFS, Config

# Stages are imported when they run: `--help` and `--print_config` must not wait for torch.
Made = tuple[Manifest, bool]


def _data(config: Config) -> list[Made]:
    from minionerec.data import prepare

    return _on_main(lambda: prepare.run(config))


def _sid(config: Config) -> list[Made]:
    from minionerec.sid import build

    return _on_main(lambda: build.run(config))


def _sft(config: Config) -> list[Made]:
    from minionerec.sft import train

    return [train.run(config)]


def _rl(config: Config) -> list[Made]:
    from minionerec.rl import train

    return [train.run(config)]


def _eval(config: Config) -> list[Made]:
    from minionerec.eval import predict

    return [predict.run(config, recommender) for recommender in predict.stages(config.folder)]


def _report(config: Config) -> list[Made]:
    from minionerec.report import build

    return _on_main(lambda: build.run(config))


STAGES: dict[str, Callable[[Config], list[Made]]] = {
    "data": _data,
    "sid": _sid,
    "sft": _sft,
    "rl": _rl,
    "eval": _eval,
    "report": _report,
}


def _on_main(stage: Callable[[], Made]) -> list[Made]:
    """Run a single-process stage on rank 0 while the others wait."""
    made = [stage()] if is_main_process() else []
    wait_for_everyone()
    return made


def set_threads(threads: int) -> None:
    """Cap the threads of the numerical libraries, before the first of them is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def run(config: Config, stages: tuple[str, ...]) -> None:
    """Run the named stages; prints one line each: what it made, where, how long."""
    set_threads(config.threads)
    console = Console(quiet=not is_main_process(), highlight=False, soft_wrap=True)
    for stage in stages:
        started = time.monotonic()
        for manifest, fresh in STAGES[stage](config):
            took = f"{time.monotonic() - started:.1f} s" if fresh else "up to date"
            console.print(f"[bold]{manifest.stage}[/] {config.folder / manifest.stage}: {_summary(manifest)} [dim]({took})[/]")
            started = time.monotonic()


def _summary(manifest: Manifest) -> str:
    """The first few figures of a manifest, as one line."""
    shown = [(name, value) for name, value in manifest.metrics.items() if isinstance(value, int | float)][:6]
    return ", ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in shown)


def result_table(config: Config) -> Table:
    """HR and NDCG on SIDs of everything evaluated in the run, with 95 % intervals of HR@10 and NDCG@10."""
    table = Table(title=f"{config.name}, {config.eval.split} split, 95 % intervals", title_justify="left")
    table.add_column("model")
    for cutoff in CUTOFFS:
        table.add_column(f"HR@{cutoff}", justify="right")
    table.add_column("NDCG@10", justify="right")
    for folder in sorted((config.folder / "eval").glob("*/metrics.json"), key=lambda path: path.parent.name != "popularity"):
        cells = read_json(folder)["sid"]
        hits = [_cell(cells[f"HR@{cutoff}"], cutoff == 10) for cutoff in CUTOFFS]
        table.add_row(folder.parent.name, *hits, _cell(cells["NDCG@10"], True))
    return table


def _cell(cell: dict[str, float], interval: bool) -> str:
    return f"{cell['value']:.4f}" + (f"\n[{cell['low']:.4f}, {cell['high']:.4f}]" if interval else "")
