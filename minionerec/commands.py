"""What each command of `minionerec` does; `cli/table.py` lists the commands.

Rooms are imported when a command runs: `--help` must not wait for torch.
"""

import gc
import os
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from minionerec import pipeline
from minionerec.artifacts import MANIFEST, Manifest, cache_folder, replace_text, require, write_json
from minionerec.config import Config, run_file
from minionerec.config.fields import did_you_mean
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from minionerec.data.dataset import Dataset
    from minionerec.eval.metrics_json import Cell

ALL_STAGES = ("data", "sid", "sft", "rl", "eval", "report")


def _console(width: int = 140) -> Console:
    """The screen; a file or a pipe gets lines of a fixed width. `:cat:` in a title stays as it is, here and everywhere."""
    return Console(emoji=False, width=None if sys.stdout.isatty() else width, highlight=False, soft_wrap=True)


# Stages


def run_all(config: Config) -> None:
    """Run every stage, then print the table of results and the path of the page."""
    pipeline.run(config, ALL_STAGES)
    _print_results(config)
    _print_page(config)


def run_stage(name: str) -> Callable[[Config], None]:
    """The command that runs one stage."""
    return lambda config: pipeline.run(config, (name,))


def prepare_pairs(config: Config) -> None:
    """Run the stage `pairs`, after `data` if pairs are made of the run's Dataset."""
    pipeline.run(config, ("data", "pairs") if config.pairs.source == "dataset" else ("pairs",))


def score(config: Config, train: bool, merge: list[Path]) -> None:
    """Run the stage `score`, after those that it needs, and print the table.

    Args:
        train: train a model on the pairs first, or find it trained.
        merge: folders of runs whose models are shown too.
    """
    from minionerec.eval.pair_leaderboard import check_mergeable, read_leaderboard

    boards = {str(run): read_leaderboard(run) for run in merge}
    check_mergeable(config, boards, prepared=False)  # refused before anything is computed
    stages = ["data", "pairs"] if config.pairs.source == "dataset" else ["pairs"]
    scoring = ["score"]
    if train:
        scoring = ["sid", "yes-no", "score"] if config.yes_no.items == "sid" else ["yes-no", "score"]
    pipeline.run(config, (*stages, *scoring), {scoring[0]: lambda: check_mergeable(config, boards, prepared=True)})
    _print_scores(config, merge)


def lego(config: Config) -> None:
    """Train a content recommender, after the stages that it needs, and print its table: the run's pairs, or its lists."""
    if config.lego.task == "lists":
        pipeline.run(config, ("data", "sid", "lego"))
        _print_results(config)
    else:
        pipeline.run(config, (*(("data",) if config.pairs.source == "dataset" else ()), "pairs", "lego", "score"))
        _print_scores(config, [])
    if is_main_process():
        from minionerec.report.lego_table import cost_table

        _console(200).print(cost_table(config.folder, config.lego.task))


def evaluate(config: Config) -> None:
    """Run the stage `eval` and print the table of results."""
    pipeline.run(config, ("eval",))
    _print_results(config)


def report(config: Config) -> None:
    """Run the stage `report` and print the path of the page."""
    pipeline.run(config, ("report",))
    _print_page(config)


def run_training(stage: str) -> Callable[..., None]:
    """The command of a training stage: it trains or, with `dry_run`, prints the plan of the training and stops."""

    def train(config: Config, dry_run: bool, **planned: Any) -> None:
        given = {name: value for name, value in planned.items() if value is not None}
        if dry_run:
            if "machines" in given and "devices" not in given:
                raise ConfigError("--machines needs --devices, the devices of each machine.")
            if "gbit" in given and given.get("machines", 1) == 1:
                raise ConfigError("--gbit is the speed of the network between machines; pass --machines, too.")
            pipeline.plan(stage, config, **{"devices": None, "gpu_memory": None, **given})
            return
        for name, value in given.items():
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} belongs to --dry-run: minionerec {stage} --dry-run --{option} {value:g}")
        pipeline.run(config, (stage,))

    return train


def check_launch(out: Path, machines: int | None) -> None:
    """Print which processes this launch has, that they see one folder, and how long an exchange takes.

    Raises:
        ConfigError: they do not form one world, or do not see one folder.
    """
    pipeline.quieten_libraries()
    from minionerec.training.launch import start_all_processes
    from minionerec.training.launch_check import check_launch

    start_all_processes()
    facts = check_launch(out, machines)
    if is_main_process():
        print("\n".join(facts.lines()))
    distributed_state().destroy_process_group()  # its threads would abort a process that simply ends


def _print_results(config: Config) -> None:
    if is_main_process():
        Console(emoji=False, width=None if sys.stdout.isatty() else 120).print(result_table(config))


def _print_scores(config: Config, merge: list[Path]) -> None:
    if is_main_process():
        from minionerec.eval.pair_leaderboard import merged, read_leaderboard
        from minionerec.report.pair_table import score_table

        board = merged(read_leaderboard(config.folder), {str(run): read_leaderboard(run) for run in merge})
        _console(200).print(score_table(board, run_file.name_of(config)))


def _print_page(config: Config) -> None:
    if is_main_process():
        print(config.folder / "report" / "index.html")


def result_table(config: Config) -> Table:
    """HR and NDCG on items of everything evaluated in the run, with 95 % intervals at the headline's cut-off.

    There is a column per cut-off that a list reaches. Recommenders with shorter lists have a dash in it. What lists were made
    with is what their evaluation has recorded. It stands in the title if it holds for all rows, else in each row. Rows whose
    model, data or SIDs are others by now are left out, and named below.
    """
    from minionerec.eval.evaluate import evaluated
    from minionerec.eval.lists import headline_cutoff
    from minionerec.eval.metrics_json import Metrics
    from minionerec.report.evaluated import of_present_inputs

    names, left_out = of_present_inputs(config.folder, evaluated(config.folder))
    manifests = {name: Manifest.load(config.folder / "eval" / name) for name in names}
    metrics = {name: Metrics.read(config.folder / "eval" / name / "metrics.json") for name in names}
    cutoffs = sorted({cutoff for values in metrics.values() for cutoff in values.cutoffs})
    headline = headline_cutoff(cutoffs)
    made_with = {name: _made_with(manifests[name], values.rows) for name, values in metrics.items()}
    common = [words for words in next(iter(made_with.values())) if all(words in others for others in made_with.values())]
    title = ", ".join([run_file.name_of(config), *common, "on items", "95 % intervals"])
    table = Table(title=escape(title), title_justify="left", caption=left_out, caption_justify="left")
    table.add_column("model", no_wrap=True)
    for cutoff in cutoffs:
        table.add_column(f"HR@{cutoff}", justify="right")
    table.add_column(f"NDCG@{headline}", justify="right")
    for name, values in metrics.items():
        cells = values.headline
        hits = [_cell(cells.get(f"HR@{cutoff}"), cutoff == headline) for cutoff in cutoffs]
        own = [words for words in made_with[name] if words not in common]
        table.add_row("\n".join([name, *own]), *hits, _cell(cells.get(f"NDCG@{headline}"), True))
    return table


def _made_with(manifest: Manifest, rows: int) -> list[str]:
    """What an evaluation's lists were made with, in words."""
    settings = manifest.config["eval"]
    words = [f"{rows:,} examples of the {settings['split']} split", f"{settings['num_beams']} beams"]
    words.append(f"history {'left out' if settings['exclude_history'] else 'kept'}")
    dtype = settings.get("dtype", "float32")
    return words if dtype == "float32" else [*words, dtype]


def _cell(cell: "Cell | None", interval: bool) -> str:
    if cell is None:
        return "-"
    return f"{cell['value']:.4f}" + (f"\n[{cell['low']:.4f}, {cell['high']:.4f}]" if interval else "")


# Recommending


def recommend(**options: Any) -> None:
    """Print the list of one history, or write the lists of a file of users."""
    pipeline.set_up(Config().threads)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # under accelerate launch
        from minionerec.training.launch import start_all_processes

        start_all_processes()
    pipeline.quieten_libraries()
    from minionerec.recommend import command

    command.check(options)
    width = None if sys.stdout.isatty() else 140
    command.run(Console(emoji=False, quiet=not is_main_process(), width=width, highlight=False), options)


# Data


def describe_data(config: Config, html: Path | None, json: Path | None) -> None:
    """Print the facts of the run's dataset; write them as a page and as JSON if files are named.

    Raises:
        ArtifactError: the data stage has not run, or a file cannot be written.
    """
    from minionerec.data.describe import facts
    from minionerec.report import dataset_page

    pipeline.set_up(config.threads)
    dataset = _dataset(config)
    sids = _sids(config, dataset)
    sections = facts(dataset, None if sids is None else ["".join(tokens) for tokens in sids])
    console = Console(emoji=False, width=None if sys.stdout.isatty() else 120, highlight=False)
    for section, values in sections.items():
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
            write_json(json, sections)
        if html:
            html.write_text(
                dataset_page.render_dataset_page(sections, run_file.name_of(config)), encoding="utf-8", newline="\n"
            )
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be written ({error.strerror}). Choose another file.") from None


def export_data(config: Config, layout: str, to: Path) -> None:
    """Write the run's dataset in another program's layout.

    Raises:
        ArtifactError: the data stage has not run, or the layout has SIDs and the run has none yet.
        ConfigError: the folder holds files already, and `replace` is not set.
    """
    from minionerec.data import recbole, released

    if not config.replace and to.is_dir() and any(to.iterdir()):
        raise ConfigError(
            f"--to {to}: holds files already, and files of the same names would be overwritten. Nothing was changed. Choose "
            "another folder, or pass --replace."
        )
    pipeline.set_up(config.threads)
    dataset = _dataset(config)
    name = config.data.category or config.name
    if layout == "recbole":
        recbole.write(dataset, name, to)
    else:
        sids = _sids(config, dataset)
        if sids is None:
            raise ArtifactError(
                f"{config.folder}: the released code's layout has SIDs. Make them first: minionerec sid --config FILE"
            )
        released.write(dataset, sids, name, to)
    print(to)


def _dataset(config: Config) -> "Dataset":
    from minionerec.data.dataset import Dataset

    require(config.folder / "data", "minionerec data prepare --config YOUR.yaml")
    return Dataset.load(config.folder / "data")


def _sids(config: Config, dataset: "Dataset") -> list[list[str]] | None:
    """The token strings of each item: the run's SIDs, else the SIDs that came with the data; None if there are none."""
    if (config.folder / "sid" / MANIFEST).is_file():
        from minionerec.sid.index import SidIndex

        require(config.folder / "sid", "minionerec sid --config YOUR.yaml")
        index = SidIndex.load(config.folder / "sid", dataset)
        return [index.tokens(item) for item in range(len(index.codes))]
    return None if dataset.sids is None else dataset.sids["tokens"].to_list()


def list_data(name: str | None) -> None:
    """Print the public datasets whose names begin with `name`.

    Raises:
        ConfigError: no dataset begins like this.
    """
    from minionerec.data.sources import SOURCES

    sources = [source for source_name, source in SOURCES.items() if source_name.startswith(name or "")]
    if not sources:
        raise ConfigError(f"no dataset begins with {name!r}.{did_you_mean(name or '', SOURCES, 0.5)}")
    for source in sources:
        sizes = [file.bytes for file in source.files]
        total = f"{sum(size or 0 for size in sizes) / 1e6:.1f} MB{'' if all(sizes) else ' and more'}"
        checked = sum(file.checksum is not None for file in source.files)
        print(
            f"{source.name}\n    {source.what}; {total if any(sizes) else 'size unknown'}; checksums known of {checked} of "
            f"{len(sizes)} files; {source.terms}\n    {source.page}   {source.options}"
        )


def get_data(name: str) -> None:
    """Fetch a public dataset into the cache.

    Raises:
        ConfigError: there is no such dataset.
        DataError: it cannot be fetched; the message has the steps by hand.
    """
    from minionerec.data.sources import SOURCES, fetch

    if name not in SOURCES:
        raise ConfigError(
            f"no dataset is called {name!r}.{did_you_mean(name, SOURCES, 0.5)} minionerec data list shows all names."
        )
    source = SOURCES[name]
    print(f"{source.name}: {source.what}. Terms: {source.terms}. {source.page}")
    path = fetch(name, cache_folder())
    print(f"{path}\nRead it with: minionerec data prepare {source.options}")


# Models


def get_model(name: str) -> None:
    """Fetch a published language model into the cache.

    Raises:
        ConfigError: there is no such model, or the package that reads it is not installed.
        DataError: it cannot be fetched; the message has the steps by hand.
    """
    from minionerec.model import pretrained

    pipeline.quieten_libraries()
    folder = pretrained.fetch(name)
    published = pretrained.PUBLISHED[name]
    print(f"{name}: {published.what}. Terms: {published.terms}. {published.page}")
    print(f"{folder}\nTrain it with: --model.init from_pretrained --model.path {name}")


# Semantic IDs


def inspect_sids(config: Config) -> None:
    """Print the figures of the run's semantic IDs and write them as a page."""
    from minionerec.report import sids

    pipeline.set_up(config.threads)
    manifest, _ = sids.write_sid_page(config)
    _console().print(sids.figures_table(config))
    print(config.folder / manifest.stage / "index.html")


def compare_sids(config: Config, methods: str | None) -> None:
    """Print a table of several quantizers on the run's catalog; all quantizers if no `methods` are named."""
    from minionerec.sid import compare

    pipeline.set_up(config.threads)
    pipeline.quieten_libraries()
    _console().print(compare.compare_methods(config, [method for method in (methods or "").split(",") if method]))


def append_sids(config: Config, base: Path) -> None:
    """Make semantic IDs for a larger catalog; the semantic IDs of the run `base` stay as they are."""
    from minionerec.sid import append

    pipeline.set_up(config.threads)
    pipeline.quieten_libraries()
    with run_file.recording(config, "sid"):
        manifest, fresh = append.append_sids(config, base)
    figures = pipeline.summary(manifest) if fresh else "up to date"
    _console().print(f"[bold]sid[/] {escape(str(config.folder / 'sid'))}: {figures}")


# A trained model


def export_model(
    run: Path, to: Path, stage: str | None, push: str | None, replace: bool, no_mixture: bool, **engine: Any
) -> None:
    """Write a run's model and all that recommending with it needs into one folder; with `push`, upload it too.

    Args:
        engine: the option `--for`, whose name is a word of Python.
    """
    from minionerec.recommend import export

    pipeline.quieten_libraries()
    export.export(run, to, engine["for"], stage, replace=replace, model_alone=no_mixture)
    print(to)
    if push is not None:
        print(export.push(to, push))


# Tables of results


def table_of_baselines(name: list[str], runs: Path | None, json: Path | None, html: Path | None, **options: Any) -> None:
    """Print a published table next to our rows, or compare all recommenders of some runs."""
    from minionerec.report import baseline_tables, comparison, comparison_pages

    folders = [Path(one) for one in name if (Path(one) / "eval").is_dir()]
    others = [one for one in name if Path(one) not in folders]
    published = [one for one in others if one in baseline_tables.PUBLISHED_METRICS]
    if published and len(name) > 1:
        raise ConfigError(f"baseline table {' '.join(name)}: {published[0]} is a table of its own; ask for it alone.")
    if folders and others:
        raise ConfigError(f"baseline table {others[0]}: no folder of a run with eval/ in it, as the other names are.")
    if not folders:
        if len(name) > 1:
            raise ConfigError(f"baseline table {' '.join(name)}: none of these is a run's folder with eval/ in it.")
        usual = signature(comparison.compare_runs).parameters
        given = [f"--{option}" for option, value in options.items() if value != usual[option].default]
        given += [f"--{option}" for option, value in (("json", json), ("html", html)) if value is not None]
        if published and given:
            raise ConfigError(
                f"baseline table {name[0]} takes no {', '.join(given)}: that is for folders of runs. Leave it out."
            )
        # A run of a published table's protocol has no data of its own to evaluate on.
        if not published and (Path(name[0]) / run_file.RUN_FILE).is_file() and (Path(name[0]) / "data").is_dir():
            raise ConfigError(
                f"baseline table {name[0]}: nothing is evaluated in this run. First minionerec eval --config {name[0]}"
            )
        return _console(200).print(baseline_tables.published_table(name[0], runs or Path("runs")))
    if runs is not None:
        raise ConfigError("--runs is for the tables beauty and lastfm; name the folders of the runs alone.")
    compared = comparison.compare_runs(folders, **options)
    _console(200).print(comparison_pages.screen_table(compared))
    if json is not None:
        write_json(json, compared.as_dict())
    if html is not None:
        replace_text(html, comparison_pages.render_page(compared, ", ".join(map(str, folders))))
    return None


def slices(run: Path, only: str | None, **options: Any) -> None:
    """Print one metric of a run's recommenders per part of the split, and their paired differences."""
    from minionerec.report.slices import screen_tables, slices_of_run

    sliced = slices_of_run(run, only=[name for name in (only or "").split(",") if name], **options)
    for table in screen_tables(sliced, str(run)):
        _console(200).print(table)


def import_baseline(file: Path, to: Path | None) -> None:
    """Write published weights, pickled by torch, as a safetensors file."""
    from minionerec.baselines.importing import import_weights

    imported = import_weights(file, to or file.with_suffix(".safetensors"))
    settings = ", ".join(f"{name} {value}" for name, value in imported.settings.items())
    print(f"{imported.path}: {imported.tensors} tensors" + f"; trained with {settings}" * bool(settings))
    print(f"Rank with them: minionerec baseline --baseline.model NAME --baseline.weights {imported.path}")


def levels(**options: Any) -> None:
    """Print, plot and store the level tables of a predictions file."""
    from minionerec.eval import calc_level

    calc_level.run(**options)


def table_of_pairs(run: list[Path], html: Path | None) -> None:
    """Print the leaderboards of runs, and what the published tables say about themselves; write all of it as a page, too."""
    from minionerec.eval.pair_leaderboard import read_leaderboard
    from minionerec.report import pair_page
    from minionerec.report.pair_table import score_table

    boards = {str(one): read_leaderboard(one) for one in run}
    for folder, board in boards.items():
        _console(200).print(score_table(board, folder))
    page = pair_page.pair_page(boards)
    for finding in page.findings:
        _console().print(f"{finding.audit}, {finding.table}: {finding.text}", markup=False)
    if html is not None:
        replace_text(html, pair_page.render(page))
        _console().print(f"written to {html}", markup=False)


def audit_pair_tables(file: Path | None) -> None:
    """Print what tables of AUC say about themselves, one line for each finding; without a file, those of RecBench's authors."""
    from minionerec.report.pair_audit import audit, published_tables, read_tables

    tables = published_tables() if file is None else read_tables(file)
    findings = audit(tables)
    for finding in findings:
        print(f"{finding.audit}, {finding.table}: {finding.text}")
    if not findings:
        print(f"{file}: nothing found in {sum(map(len, tables.values.values()))} rows.")


def gap(runs: list[Path], out: Path, **options: Any) -> None:
    """Compare runs with the published tables: print the tables, write the pages."""
    from minionerec.report.paper_gap import gap_tables, write_gap_report

    console = Console(emoji=False, width=None if sys.stdout.isatty() else 120)
    for table in gap_tables(write_gap_report(runs, out, **options)):
        console.print(table)
    console.print(f"written to {out / 'paper_gap.html'}", highlight=False, soft_wrap=True)


# Asking a model


def serve(config: Config, run: Path | None, stage: str | None, device: str | None, dtype: str | None) -> None:
    """Serve a run's model over HTTP until the process is told to stop."""
    # Nearly all that a start makes stays. To look through it for garbage again and again takes a seventh of the start
    # (docs/serve.md); `server.run` lets that begin.
    gc.disable()
    try:
        from minionerec.serve import server

        pipeline.set_up(config.threads)
        pipeline.quieten_libraries()
        server.serve(run or config.folder, config.serve, stage, device, dtype)
    finally:
        gc.enable()


# Help for the shell


def list_presets() -> None:
    """Print the presets with one line each, presets of baselines last."""
    from minionerec import presets

    ours, baselines = presets.descriptions()
    width = max(map(len, (*ours, *baselines)))
    for title, descriptions in (
        ("Presets of `minionerec run` and its stages, of `score` and of `lego`:", ours),
        ("Presets of `minionerec baseline`:", baselines),
    ):
        print(title)
        print("\n".join(f"  {name:{width}}  {text}" for name, text in descriptions.items()) + "\n")
    print("Use one: minionerec COMMAND --config NAME. Or write a file of your own: --config FILE.yaml")


def print_completion(shell: str) -> None:
    """Print the script that completes commands, options and presets in a shell."""
    from minionerec.cli import completion

    print(completion.script(shell))
