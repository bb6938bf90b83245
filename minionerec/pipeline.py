"""Runs stages in order. A stage whose config and inputs are unchanged is skipped."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import CUTOFFS, Config, run_file
from minionerec.distributed import is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from minionerec.data.dataset import Dataset

# Stages are imported when they run: `--help` and `--print_config` must not wait for torch.
Made = tuple[Manifest, bool]  # the artefact, and whether it was made anew


def _quieten_transformers() -> None:
    """No bars for reading and writing a file: the stages draw their own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _data(config: Config) -> Iterator[Made]:
    from minionerec.data import prepare

    yield from _on_main(lambda: prepare.prepare_data(config))


def _sid(config: Config) -> Iterator[Made]:
    from minionerec.sid import build

    _quieten_transformers()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        build.embed(config)
    yield from _on_main(lambda: build.run(config))


def _sft(config: Config) -> Iterator[Made]:
    from minionerec.report import curves
    from minionerec.sft.train import train_sft

    _quieten_transformers()
    yield train_sft(config, curves.write_curves)


def _rl(config: Config) -> Iterator[Made]:
    from minionerec.report import curves
    from minionerec.rl.train import train_rl

    _quieten_transformers()
    yield train_rl(config, curves.write_curves)


def _eval(config: Config) -> Iterator[Made]:
    from minionerec.eval.evaluate import evaluable, evaluate

    _quieten_transformers()
    for recommender in evaluable(config.folder):
        yield evaluate(config, recommender)


def _report(config: Config) -> Iterator[Made]:
    from minionerec.report import build

    yield from _on_main(lambda: build.write_report(config))


def _baseline(config: Config) -> Iterator[Made]:
    from minionerec.baselines.train import train_baseline
    from minionerec.eval.evaluate import evaluate
    from minionerec.eval.listed import BUILT_IN

    yield train_baseline(config)
    ours = config.baseline.protocol == "dataset" and config.baseline.model not in BUILT_IN
    if ours and (config.folder / "sid" / MANIFEST).is_file():
        yield evaluate(config, config.baseline.model)


STAGES: dict[str, Callable[[Config], Iterator[Made]]] = {
    "data": _data,
    "sid": _sid,
    "sft": _sft,
    "rl": _rl,
    "eval": _eval,
    "report": _report,
    "baseline": _baseline,
}


def _on_main(stage: Callable[[], Made]) -> list[Made]:
    """Run a single-process stage on rank 0 while the others wait."""
    made = [stage()] if is_main_process() else []
    wait_for_everyone()
    return made


def set_up(threads: int) -> None:
    """Cap the threads of the numerical libraries, before the first of them is imported, and quieten their chatter."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|torch\.distributed")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _deepspeed_without_compiler()


def _deepspeed_without_compiler() -> None:
    """On CPUs, keep DeepSpeed from compiling a shared-memory kernel for two minutes; gloo serves as well."""
    import torch

    if not torch.cuda.is_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def run(config: Config, stages: tuple[str, ...]) -> None:
    """Run the named stages; prints one line each: what it made, where, how long. Several: also time and memory of all."""
    set_up(config.threads)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # under accelerate launch
        from minionerec.training.launch import start_all_processes

        start_all_processes()
    began = time.monotonic()
    console = Console(quiet=not is_main_process(), highlight=False, soft_wrap=True)
    if (line := run_file.other_settings(config, stages)) is not None:
        Console(stderr=True, quiet=console.quiet, highlight=False, soft_wrap=True).print(line, markup=False)
    for stage in stages:
        started = time.monotonic()
        with run_file.recording(config, stage):
            for manifest, fresh in STAGES[stage](config):
                took = f"{time.monotonic() - started:.1f} s" if fresh else "up to date"
                folder = escape(str(config.folder / manifest.stage))
                console.print(f"[bold]{manifest.stage}[/] {folder}: {_summary(manifest)} [dim]({took})[/]")
                started = time.monotonic()
    if len(stages) > 1:
        console.print(f"[bold]all[/] {(time.monotonic() - began) / 60:.1f} min{_peak_memory()}")


def plan(stage: str, config: Config, options: dict[str, str]) -> None:
    """Print what a training stage would take, without training.

    Args:
        options: `dry-run`; `devices` and `gpu-memory` as text.

    Raises:
        ConfigError: an option without `dry-run`, or one that is no number above 0.
    """
    if "dry-run" not in options:
        name, value = next(iter(options.items()))
        raise ConfigError(f"--{name} belongs to --dry-run: minionerec {stage} --dry-run --{name} {value}")
    numbers: dict[str, float] = {}
    for name, unit in (("devices", ""), ("gpu-memory", " (GB)")):
        if name in options:
            try:
                numbers[name] = float(options[name])
            except ValueError:
                numbers[name] = 0.0
            whole = name != "devices" or numbers[name].is_integer()
            if not (0 < numbers[name] < float("inf") and whole):
                kind = "whole number" if name == "devices" else "number"
                raise ConfigError(f"--{name} is {options[name]!r}; expected a {kind} above 0{unit}.")
    set_up(config.threads)
    _quieten_transformers()
    from minionerec.rl import plan as rl_plan
    from minionerec.sft import plan as sft_plan

    count = numbers.get("devices")
    for planned in {"sft": sft_plan, "rl": rl_plan}[stage].plans(config, None if count is None else int(count)):
        planned.show(numbers.get("gpu-memory"))


def _peak_memory() -> str:
    """The most memory this process has held, as text; empty on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return ""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", peak memory {peak / 1e9 if sys.platform == 'darwin' else peak * 1024 / 1e9:.2f} GB"  # macOS: bytes, Linux: KiB


def _summary(manifest: Manifest) -> str:
    """The first few figures of a manifest, as one line."""
    shown = [(name, value) for name, value in manifest.metrics.items() if isinstance(value, int | float)][:6]
    return ", ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in shown)


def result_table(config: Config) -> Table:
    """HR and NDCG on SIDs of everything evaluated in the run, with 95 % intervals of HR@10 and NDCG@10."""
    from minionerec.eval.evaluate import evaluable
    from minionerec.eval.metrics_json import Metrics

    title = f"{config.name}, {config.eval.split} split, {config.eval.num_beams} beams, 95 % intervals"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("model", no_wrap=True)
    for cutoff in CUTOFFS:
        table.add_column(f"HR@{cutoff}", justify="right")
    table.add_column("NDCG@10", justify="right")
    for recommender in evaluable(config.folder):
        cells = Metrics.read(config.folder / "eval" / recommender / "metrics.json").sid
        hits = [_cell(cells[f"HR@{cutoff}"], cutoff == 10) for cutoff in CUTOFFS]
        table.add_row(recommender, *hits, _cell(cells["NDCG@10"], True))
    return table


def _cell(cell: dict[str, float], interval: bool) -> str:
    return f"{cell['value']:.4f}" + (f"\n[{cell['low']:.4f}, {cell['high']:.4f}]" if interval else "")


def describe_data(config: Config, html: str | None = None, json: str | None = None) -> None:
    """Print the facts of the run's dataset; also as a page and as JSON where files are named.

    Raises:
        ArtifactError: the data stage has not run, or a file cannot be written.
    """
    from minionerec.artifacts import require, write_json
    from minionerec.data.dataset import Dataset
    from minionerec.data.describe import facts
    from minionerec.report import dataset_page

    require(config.folder / "data", "minionerec data prepare --config YOUR.yaml")
    dataset = Dataset.load(config.folder / "data")
    sids = _sids(config, dataset)
    found = facts(dataset, None if sids is None else ["".join(tokens) for tokens in sids])
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for section, values in found.items():
        section_table = dataset_page.facts_table(values)
        columns = section_table.columns
        table = Table(title=section, title_justify="left", show_header=len(columns) > 1, min_width=60)
        table.add_column("")
        for column in columns:
            table.add_column(column, justify="right")
        for row in section_table.rows:
            table.add_row(*map(escape, row.headings), *(escape(cell.text) for cell in row.cells))
        console.print(table)
    try:
        if json:
            write_json(Path(json), found)
        if html:
            Path(html).write_text(dataset_page.render_dataset_page(found, config.name), encoding="utf-8", newline="\n")
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be written ({error.strerror}). Choose another file.") from None


def export_data(config: Config, layout: str = "", to: str = "") -> None:
    """Write the run's dataset in another program's layout.

    Raises:
        ConfigError: no layout or folder is named.
        ArtifactError: the data stage has not run; or, for the released code's layout, there are no SIDs yet.
    """
    from minionerec.artifacts import require
    from minionerec.data import recbole, released
    from minionerec.data.dataset import Dataset

    if layout not in ("released", "recbole") or not to:
        raise ConfigError("minionerec data export needs --layout released or --layout recbole, and --to FOLDER.")
    require(config.folder / "data", "minionerec data prepare --config YOUR.yaml")
    dataset = Dataset.load(config.folder / "data")
    name = config.data.category or config.name
    if layout == "recbole":
        recbole.write(dataset, name, Path(to))
    else:
        sids = _sids(config, dataset)
        if sids is None:
            raise ArtifactError(
                f"{config.folder}: the released code's layout has SIDs. Make them first: minionerec sid --config FILE"
            )
        released.write(dataset, sids, name, Path(to))
    print(to)


def _sids(config: Config, dataset: "Dataset") -> list[list[str]] | None:
    """The token strings of each item: those of the run, else those that came with the data; None where there are none."""
    if (config.folder / "sid" / MANIFEST).is_file():
        from minionerec.sid.index import SidIndex

        index = SidIndex.load(config.folder / "sid", dataset)
        return [index.tokens(item) for item in range(len(index.codes))]
    return None if dataset.sids is None else dataset.sids["tokens"].to_list()


def inspect_sids(config: Config) -> None:
    """Print the figures of the run's semantic IDs and write them as a page; see `report.sids`."""
    from minionerec.report import sids

    manifest, _ = sids.write_sid_page(config)
    _console().print(sids.figures_table(config))
    print(config.folder / manifest.stage / "index.html")


def compare_sids(config: Config, methods: str = "") -> None:
    """Print a table of several quantizers on the run's catalog; see `sid.compare`.

    Args:
        methods: their names with commas between them; empty for all.
    """
    from minionerec.sid import compare

    _console().print(compare.run(config, [method for method in methods.split(",") if method]))


def append_sids(config: Config, base: str = "") -> None:
    """Semantic IDs for a larger catalog, those of the run `base` unchanged; see `sid.append`.

    Raises:
        ConfigError: no run is named.
    """
    from minionerec.sid import append

    if not base:
        raise ConfigError("sid append needs --base DIR, the run whose semantic IDs are extended.")
    with run_file.recording(config, "sid"):
        manifest, fresh = append.run(config, Path(base))
    what = _summary(manifest) if fresh else "up to date"
    _console().print(f"[bold]sid[/] {escape(str(config.folder / 'sid'))}: {what}")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=True)


# Commands that are no stage of a run: functions of the configuration and of options of their own.
COMMANDS: dict[str, Callable[..., None]] = {
    "data describe": describe_data,
    "data export": export_data,
    "sid inspect": inspect_sids,
    "sid compare": compare_sids,
    "sid append": append_sids,
}


def command(name: str, config: Config, options: dict[str, str]) -> None:
    """Run one of `COMMANDS`."""
    set_up(config.threads)
    _quieten_transformers()
    COMMANDS[name](config, **options)
