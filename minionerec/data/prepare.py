"""Stage `data`: raw files to a Dataset.

Inputs: a download (MovieLens, Amazon, the released code's files), or your own files in any layout of `READERS`.
Outputs: `<run>/data/` with `catalog.parquet`, `train.parquet`, `valid.parquet`, `test.parquet`, `interactions.parquet` if the
source has interactions, `sids.parquet` if it brings semantic IDs, `skipped.txt` if rows were skipped, and `manifest.json`
with everything counted.
Deviation from the paper: leave-last-two-out per user is the default; the paper's global split is `data.split: chronological`.
Command: `python data/prepare.py --config ml-100k.yaml`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from minionerec.artifacts import (
    CHECKPOINTS,
    UNSEEDED,
    Draft,
    Manifest,
    Recipe,
    cache_folder,
    check_disk_space,
    file_hash,
)
from minionerec.config import Config, DataConfig
from minionerec.config.checks import for_display
from minionerec.data import (
    amazon,
    folders,
    mimigenrec,
    prepared_tables,
    readers,
    recbole,
    released,
    row_splits,
    sequences,
    sources,
    times,
)
from minionerec.data.assemble import Prepared, Raw, assemble, figures_of, write_assembled
from minionerec.data.bad_rows import Problems
from minionerec.data.checks import NEGATIVE, UNTIMED
from minionerec.data.dataset import SPLITS, Dataset
from minionerec.data.filters import Part, encode
from minionerec.distributed import decide_on_main, is_main_process
from minionerec.errors import ArtifactError, DataError


class Reader(NamedTuple):
    """One layout of raw files.

    Attributes:
        read: makes the dataset; takes the folder (or file) of `data.path`, the section `data` and the bad rows met so far.
        files: the raw files that `read` will read; their digests are inputs of the stage.
    """

    read: Callable[[Path, DataConfig, Problems], Prepared]
    files: Callable[[Path, DataConfig], tuple[Path, ...]]


class Inputs(NamedTuple):
    """The raw files: the SHA-256 of each by its path in `source`, and `source`, a folder or a file."""

    digests: dict[str, str]
    source: Path


def find_inputs(config: Config) -> Inputs:
    """Find the raw files (a download is fetched unless it is cached) and hash them.

    Raises:
        DataError: files are missing, there are too many to choose from, or a download failed.
    """
    data = config.data
    source = Path(data.path) if data.path else None
    if name := sources.named(data):
        source = sources.fetch(name, cache_folder(), source)
    if source is None:
        raise DataError(f"data.source {data.source!r} needs data.path, the folder that holds your files.")
    try:
        return Inputs(_digests(data, source), source)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). data.path names your files.") from None


def _digests(data: DataConfig, source: Path) -> dict[str, str]:
    folder = source.parent if source.is_file() else source
    names = {path.relative_to(folder).as_posix(): path for path in _files(data, source)}
    for name in names:
        if for_display(name) != name:
            raise DataError(f"{folder}: the name of {for_display(name)} is not valid UTF-8. Rename the file.")
    return {name: file_hash(path) for name, path in names.items()}


def _files(data: DataConfig, source: Path) -> tuple[Path, ...]:
    """The raw files that the stage will read."""
    if source.is_file():
        return (source,)
    if data.source == "parquet":
        return tuple(path for files in prepared_tables.tables(source) for path in files)
    if data.is_amazon:
        return row_splits.amazon_files(source, data.category) or amazon.files(source, data.category)
    return READERS[data.source].files(source, data)


def prepare_data(config: Config) -> tuple[Manifest, bool]:
    """Write `<run>/data/`, unless it was made from the same files with the same settings. Every process of a launch calls it.

    Returns:
        the manifest, and whether the artefact was made anew.

    Raises:
        DataError: the raw files are missing or malformed, or nothing is left of them.
        ConfigError: options that cannot apply to these files; or finished data of other settings or files, without `replace`.
        ArtifactError: the disk is full.
        LockedError: another process prepares this run's data.
    """
    # Ask before anything is downloaded. A download cannot change, so a finished one needs neither the cache nor a network.
    manifest = decide_on_main(lambda: _of_the_same_settings(config))
    if manifest is not None and config.data.path is None and manifest.config["data"]["path"] is None:
        return manifest, False
    inputs, source = decide_on_main(lambda: find_inputs(config))
    recipe = replace(data_recipe(config, inputs), reread=lambda: _digests(config.data, source))
    return recipe.make(lambda: _read_and_write(config, source, recipe), collective=True)


def _read_and_write(config: Config, source: Path, recipe: Recipe) -> None:
    problems = Problems(skip=config.data.on_error == "skip", notes=[folders.contents(source, recipe.inputs)])
    given = config.data.is_amazon and bool(row_splits.amazon_files(source, config.data.category))
    if config.data.source == "parquet" or (config.data.is_amazon and not given):
        _write_in_parts(config, source, recipe, problems)
    elif is_main_process():
        prepared = _read(config.data, source, problems)
        with recipe.write() as draft:
            prepared.dataset.save(draft.path)
            _record(draft, prepared.figures, problems)
    if is_main_process():
        for note in problems.notes:
            print(f"data: {note}", flush=True)


def _read(config: DataConfig, source: Path, problems: Problems) -> Prepared:
    """Read raw files into memory."""
    if config.is_amazon:
        config.refuse_filters(f"the splits in {source} are given")
        return with_figures(row_splits.read_amazon(row_splits.amazon_files(source, config.category), config, problems))
    return READERS[config.source].read(source, config, problems)


def _write_in_parts(config: Config, source: Path, recipe: Recipe, problems: Problems) -> None:
    """Prepare what need not fit into the memory; every process of a launch takes its share."""
    check_disk_space(config.folder, sum(path.stat().st_size for path in _files(config.data, source)))
    tables = config.data.source == "parquet"
    with recipe.write(resumable=tables, collective=True, hopeless=DataError) as draft:
        store = draft.path / CHECKPOINTS
        store.mkdir(exist_ok=True)
        if tables:
            raw = prepared_tables.read(source, store, config.data, problems)
        else:
            raw = _amazon(source, store, config.data, problems)
        figures = write_assembled(raw, config.data, store, draft.path)
        if is_main_process():
            _record(draft, figures, problems)


def _amazon(source: Path, store: Path, config: DataConfig, problems: Problems) -> Raw:
    paths = amazon.files(source, config.category)
    dump = decide_on_main(lambda: amazon.read(paths, store, config, problems))
    if not len(dump.ids):
        raise DataError(f"{paths[1]}: no item is left after the title rules, of {dump.counts['items_read']:,} read.")
    return Raw(dump.parts, dump.ids, lambda wanted: dump.catalog(wanted, problems), dump.unit, dump.counts, str(paths[0]))


def _record(draft: Draft, figures: Mapping[str, Any], problems: Problems) -> None:
    """Write what was skipped, and the figures of the manifest."""
    if problems.messages:
        (draft.path / "skipped.txt").write_text("\n".join(problems.messages) + "\n", encoding="utf-8")
    figures = {**figures, **problems.counts}
    if "interactions_read" in figures:  # those that a reader left out were read too
        figures["interactions_read"] += sum(problems.counts.get(name, 0) for name in (UNTIMED, NEGATIVE))
    draft.metrics.update(figures, skipped_rows=len(problems.messages), read_as=problems.notes)
    dropped = {
        name.removeprefix("dropped_").replace("_", " "): figures[name] for name in figures if name.startswith("dropped_")
    }
    if any(dropped.values()):
        problems.notes.append("left out: " + ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count))


def _of_the_same_settings(config: Config) -> Manifest | None:
    """The finished artefact if it was made with these settings, from whatever files.

    Raises:
        ConfigError: it was made with other settings, and `config.replace` is not set.
    """
    try:
        inputs = Manifest.load(config.folder / "data").inputs
    except ArtifactError:  # not there, or damaged: it is made anew
        if data_recipe(config, {}).was_interrupted:  # the recipe with the digests of the files tells whether it resumes
            return None
        inputs = {}
    return data_recipe(config, inputs).finished()


def data_recipe(config: Config, inputs: Mapping[str, str]) -> Recipe:
    """What the artefact is made from; `inputs` are the digests of the raw files."""
    folder, settings, deciding = config.folder / "data", config.section("data"), config.key_fields("data")
    return Recipe("data", folder, settings, inputs, UNSEEDED, deciding, config.replace, config.wait)


def _movielens_100k(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    read = readers.read_movielens_zip if source.is_file() else readers.read_recbole
    return build_dataset(*read(source, config, problems), config, str(source))


def _movielens_1m(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    return build_dataset(*readers.read_movielens_1m(source, config, problems), config, str(source))


def _csv(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    return build_dataset(*readers.read_csv(source, config, problems), config, str(source))


def _recbole(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    if recbole.is_split(source, config.category):
        config.refuse_filters(f"the splits in {source} are given")
        return with_figures(recbole.read_splits(source, config, problems))
    return build_dataset(*readers.read_recbole(source, config, problems), config, str(source))


def _sequences(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    path = source if source.is_file() else folders.one_file(source, ".txt", config.category)
    return build_dataset(*sequences.read_sequences(path, problems), config, str(source))


def _letter(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    if sequences.letter_splits(folders.one_file(source, ".inter.json", config.category)):
        config.refuse_filters(f"the splits in {source} are given")
        prepared = with_figures(sequences.read_letter_splits(source, config, problems))
    else:
        prepared = build_dataset(*sequences.read_letter(source, config, problems), config, str(source))
    index = next((path for path in _files(config, source) if path.name.endswith(".index.json")), None)
    if index is None:
        return prepared
    tokens = released.sid_tokens(index)
    sids = released.sid_frame([tokens[item] for item in prepared.dataset.catalog["item_id"].to_list()])
    return Prepared(replace(prepared.dataset, sids=sids), prepared.figures)


def _released(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    return with_figures(released.read(source, config, problems))


def _mimigenrec(source: Path, config: DataConfig, problems: Problems) -> Prepared:
    return with_figures(mimigenrec.read(source, config, problems))


def _csv_files(source: Path, config: DataConfig) -> tuple[Path, ...]:
    return folders.raw_files("csv", source, config.category)


def _recbole_files(source: Path, config: DataConfig) -> tuple[Path, ...]:
    return recbole.files(source, config.category)


def _sequences_files(source: Path, config: DataConfig) -> tuple[Path, ...]:
    return (folders.one_file(source, ".txt", config.category),)


def _letter_files(source: Path, config: DataConfig) -> tuple[Path, ...]:
    path = folders.one_file(source, ".inter.json", config.category)
    name, splits = path.name.removesuffix(".inter.json"), sequences.letter_splits(path)
    paths = [source / f"{name}.{kind}.json" for kind in (("index", "item") if splits else ("inter", "index", "item"))]
    return tuple(path for path in (*paths, *splits) if path.is_file())


def _released_files(source: Path, config: DataConfig) -> tuple[Path, ...]:
    return tuple(released.files(source, config.category).values())


def _mimigenrec_files(source: Path, config: DataConfig) -> tuple[Path, ...]:
    return mimigenrec.files(source, config.category)


# Amazon dumps and prepared tables are read in parts, see `_write_in_parts`. MovieLens may also come in RecBole's layout.
READERS: dict[str, Reader] = {
    "ml-100k": Reader(_movielens_100k, _recbole_files),
    "ml-1m": Reader(_movielens_1m, _recbole_files),
    "csv": Reader(_csv, _csv_files),
    "recbole": Reader(_recbole, _recbole_files),
    "sequences": Reader(_sequences, _sequences_files),
    "letter": Reader(_letter, _letter_files),
    "released": Reader(_released, _released_files),
    "mimigenrec": Reader(_mimigenrec, _mimigenrec_files),
}


def build_dataset(interactions: pl.DataFrame, items: pl.DataFrame, config: DataConfig, where: str = "these files") -> Prepared:
    """Filter, sort and split interactions, as the configuration says.

    First go items with an empty title (or one against the title rules), with their interactions; then interactions outside the
    window; then repeated rows (same user, item and timestamp) after the first; then users and items with too few interactions.
    A user's interactions are sorted by time, ties in file order. With `item_k` 0 every item of the items file stays in the
    catalog, in file order, even without an interaction: it can still be recommended.

    Args:
        interactions, items: as the readers return them; `rating` may be missing.
        where: the files, for messages.

    Raises:
        DataError: no interaction, or no training example, is left; or times are needed and there are none.
    """
    titled = items.filter(amazon.passes(config.applies_title_rules))
    if config.applies_title_rules:
        titled = titled.with_columns(amazon.tidy_title().alias("title"))
    codes = titled.select("item_id", item=pl.int_range(pl.len(), dtype=pl.Int32))
    listed = interactions.with_row_index("row").join(codes, on="item_id", how="inner", maintain_order="left")
    unlisted = len(interactions.join(items.select("item_id"), on="item_id", how="anti"))
    timed = not len(interactions) or interactions["timestamp"].null_count() < len(interactions)
    if not timed:
        _refuse_times(config, where)
    unit = times.unit_of(interactions["timestamp"], where) if timed else 1
    rating = pl.col("rating") if "rating" in interactions.columns else pl.lit(None, pl.Float32)
    rows, names = encode(
        listed.select(
            "row",
            "user",
            "item",
            rating.alias("rating"),
            time=pl.col("timestamp").to_physical() if timed else pl.col("row").cast(pl.Int64),
        )
    )
    counts = {
        "items_read": len(items),
        "interactions_read": len(interactions),
        "dropped_items_without_text": len(items) - len(titled),
        "dropped_interactions_unlisted": unlisted,
        "dropped_interactions_without_text": len(interactions) - len(listed) - unlisted,
    }
    part = Part(lambda: rows, lambda: names)
    return assemble(Raw([part], titled["item_id"], partial(_rows_of, titled), unit if timed else None, counts, where), config)


def _rows_of(items: pl.DataFrame, wanted: pl.Series) -> pl.DataFrame:
    return wanted.to_frame().join(items, on="item_id", maintain_order="left")


def _refuse_times(config: DataConfig, where: str) -> None:
    for name, used in (("start", config.start), ("end", config.end), ("split", config.split != "leave-last-two-out")):
        if used:
            raise DataError(f"{where}: has no timestamps, which data.{name} {getattr(config, name)} needs.")


def with_figures(dataset: Dataset) -> Prepared:
    """A dataset whose files come split, with its figures.

    Raises:
        DataError: the train split is empty.
    """
    if not len(dataset.train):
        rows = ", ".join(f"{len(dataset.split(name)):,} {name}" for name in SPLITS)
        raise DataError(f"No training example is left in the splits of the files: {rows} examples. See data.missing_text.")
    return Prepared(dataset, figures_of(dataset))
