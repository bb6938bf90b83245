"""Stage `eval`: rank the catalog for every user of a split with a checkpoint, and measure.

Inputs: `data/`, `sid/` and `<stage>/model/` of the run. Outputs per stage: `eval/<stage>/predictions.jsonl`,
`metrics.json` and, where `eval.oracle_examples` asks for it, `oracle.jsonl`; the first two also for the floors, under
`eval/popularity/` and `eval/repeat/`, and for the run's baselines, under their names. Predictions are stored shard by shard: an
interrupted evaluation goes on where it stopped, and any number of ranks writes the same files.

Deviations from the paper: the prompt is the one the model was trained on; the search masks what the catalog lacks instead
of adding -1e6; the checkpoint's generation settings play no part; metrics are on SIDs and on items, with intervals.

Command: `minionerec eval --config ml-100k`, or `accelerate launch eval/predict.py --config NAME`.
"""

import dataclasses
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from minionerec.artifacts import (
    CHECKPOINTS,
    ITEM_STAGES,
    MANIFEST,
    Manifest,
    content_hash,
    is_current,
    require,
    write_artifact,
)
from minionerec.config import CUTOFFS, Config, EvalConfig
from minionerec.data.dataset import Dataset
from minionerec.data.interactions import interaction_counts
from minionerec.distributed import distributed_state, is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError, DataError
from minionerec.eval import search_error
from minionerec.eval.check_predictions import check_belongs
from minionerec.eval.exposure import exposure
from minionerec.eval.listed import BUILT_IN, listed_predictions
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import measure
from minionerec.eval.metrics_json import Metrics
from minionerec.eval.predictions import Prediction, write_predictions
from minionerec.eval.slices import parts_of_dataset, parts_of_lists, slice_tables
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.sid.index import SidIndex
from minionerec.tree import CatalogTrie, beam_search, left_pad

log = logging.getLogger(__name__)

MODELS = ("sft", "rl")


class Decoder:
    """A checkpoint that ranks the catalog for examples of a split.

    Raises:
        CatalogError: the tokenizer lacks the catalog's SID tokens.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, config: EvalConfig) -> None:
        self._config, self._index, self._tokenizer = config, prompts.index, prompts.tokenizer
        self._device = distributed_state().device
        self._model = model.to(self._device).eval()
        self._tokens = prompts.sid_tokens
        self._trie = CatalogTrie.from_codes(self._tokens, self._device)
        self._item_of = {tuple(sid): item for item, sid in reversed(list(enumerate(self._tokens.tolist())))}
        split = prompts.dataset.split(config.split)
        examples = prompts.examples("history_sid_to_sid", config.split)
        self._rows = list(zip(split.iter_rows(named=True), examples, strict=True))
        self._several = split["user"].n_unique() < len(split)

    def __len__(self) -> int:
        return len(self._rows)

    def _batches(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], tuple]]:
        for start in range(0, len(rows), self._config.batch_size):
            batch = rows[start : start + self._config.batch_size]
            prompts = [self._rows[row][1].prompt for row in batch]
            yield batch, left_pad(prompts, self._tokenizer.pad_token_id, self._device)

    def predict(self, rows: Sequence[int]) -> Iterator[Prediction]:
        """Predictions for some rows of the split, in their order."""
        for batch, (ids, mask) in self._batches(rows):
            trie = self._trie
            if self._config.exclude_history:
                trie = trie.without([self._rows[row][0]["history"] for row in batch])
            result = beam_search(
                self._model,
                ids,
                mask,
                trie=trie,
                num_beams=self._config.num_beams,
                normalise_over=self._config.normalise_over,
            )
            lists = zip(batch, result.tokens.tolist(), result.scores.tolist(), result.exact.tolist(), strict=True)
            for number, tokens, scores, exact in lists:
                row, _ = self._rows[number]
                found = [self._item_of[tuple(sid)] for sid in tokens if sid[0] >= 0]  # the first item of each SID
                sids = self._index.codes[found].tolist()
                hidden = set(row["history"]) if self._config.exclude_history else set()
                groups = [[item for item in self._index.items(sid) if item not in hidden] for sid in sids]
                items = list(itertools.chain.from_iterable(groups))
                yield Prediction(
                    user=row["user"],
                    history=row["history"],
                    target=row["target"],
                    target_sid=self._index.codes[row["target"]].tolist(),
                    sids=sids,
                    items=items,
                    scores=scores[: len(found)],
                    exact=exact,
                    position=row["position"] if self._several else None,
                    sizes=[len(group) for group in groups] if len(items) > len(sids) else None,
                )

    def trace(self, rows: Sequence[int]) -> Iterator[search_error.Trace]:
        """What exact scores of the whole catalog say of some rows."""
        widths = sorted({*CUTOFFS, self._config.num_beams})
        for batch, (ids, mask) in self._batches(rows):
            targets = [self._tokens[self._rows[row][0]["target"]].tolist() for row in batch]
            yield from search_error.trace(
                self._model, ids, mask, self._trie, batch, targets, widths, self._config.normalise_over
            )


def decode(model: PreTrainedModel, prompts: Prompts, config: EvalConfig) -> Iterator[Prediction]:
    """Predictions for the whole split in its order, in this process.

    Raises:
        CatalogError: the tokenizer lacks the catalog's SID tokens.
    """
    decoder = Decoder(model, prompts, config)
    yield from decoder.predict(range(len(decoder)))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        disable=not is_main_process(),
    )


def predict_with_model(stage: str, config: Config, dataset: Dataset, index: SidIndex, folder: Path) -> None:
    """Decode in shards that do not depend on the number of processes, and put them together in the split's order."""
    model, tokenizer = checkpoint.load(config.folder / stage / "model")
    prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))
    decoder = Decoder(model, prompts, config.eval)
    shards = _shards(len(decoder), config.eval.shard_size)
    traced = evenly_spaced(len(decoder), config.eval.oracle_examples)
    store = folder / CHECKPOINTS
    store.mkdir(exist_ok=True)
    state = distributed_state()
    mine = shards[state.process_index :: state.num_processes]
    with _progress() as progress:
        task = progress.add_task(f"decode {config.eval.split}", total=sum(map(len, mine)), rate="")
        for rows in mine:
            path = _shard(store, rows)
            if not path.is_file():  # a shard under its final name is complete
                search_error.write_traces(path.with_suffix(".trace"), decoder.trace([row for row in rows if row in traced]))
                write_predictions(path, decoder.predict(rows))
            progress.advance(task, len(rows))
            progress.update(task, rate=f"{progress.tasks[task].speed or 0:.1f} examples/s")
    wait_for_everyone()
    if is_main_process():
        merge(stage, store, shards, folder)


def _shards(rows: int, size: int) -> list[range]:
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def _shard(store: Path, rows: range) -> Path:
    return store / f"rows-{rows.start:09d}-{rows.stop:09d}.jsonl"


def evenly_spaced(rows: int, count: int) -> set[int]:
    """At most `count` rows at even distances."""
    return {place * rows // count for place in range(count)} if count < rows else set(range(rows))


def merge(stage: str, store: Path, shards: Sequence[range], folder: Path) -> None:
    """Write `predictions.jsonl` and `oracle.jsonl` from the stored shards, in the split's order.

    Raises:
        ArtifactError: a shard is missing or has another number of lines than it should.
    """
    for name, suffix in (("predictions.jsonl", ".jsonl"), ("oracle.jsonl", ".trace")):
        temporary = folder / f"{name}.tmp"
        with temporary.open("wb") as merged:
            for rows in shards:
                path = _shard(store, rows).with_suffix(suffix)
                if not path.is_file():
                    raise ArtifactError(
                        f"eval/{stage}: the predictions of rows {rows.start} to {rows.stop - 1} are missing ({path.name}); a "
                        "rank did not finish its share. Run the same command again: what is stored is not decoded again."
                    )
                with path.open("rb") as shard:
                    lines = sum(1 for _ in shard)
                    if suffix == ".jsonl" and lines != len(rows):
                        raise ArtifactError(
                            f"{path}: {lines} predictions for {len(rows)} rows. Delete it and run the same command again."
                        )
                    shard.seek(0)
                    shutil.copyfileobj(shard, merged)
        if temporary.stat().st_size:
            temporary.replace(folder / name)
        else:  # no examples were asked for
            temporary.unlink()


def analyse(folder: Path, dataset: Dataset, index: SidIndex, config: Config) -> Metrics:
    """Measure a folder's `predictions.jsonl`, and what the beam search missed if there is an `oracle.jsonl`.

    Raises:
        DataError: the predictions are malformed, or not those of this split and catalog.
        ArtifactError: a line of `oracle.jsonl` is malformed.
    """
    path, exact_scores = folder / "predictions.jsonl", folder / "oracle.jsonl"
    lists = RankedLists.read(path)
    check_belongs(lists, dataset, index, config.eval.split, str(path))
    parts = parts_of_lists(lists) | parts_of_dataset(lists, dataset, index, config.eval.split)
    traces = search_error.read_traces(exact_scores) if exact_scores.is_file() else []
    return dataclasses.replace(
        measure(lists, CUTOFFS, config.eval.resamples, config.seed),
        slices=slice_tables(lists, parts, (10,), config.eval.resamples, config.seed),
        exposure=exposure(lists, interaction_counts(dataset)),
        search=search_error.summary(traces, config.eval.num_beams),
    )


def run(config: Config, recommender: str) -> tuple[Manifest, bool]:
    """Predict and measure with `sft`, `rl`, one of `BUILT_IN` or a baseline of the run, unless current.

    Returns:
        the manifest, and whether it was made anew.

    Raises:
        ArtifactError: an input is missing, or a shard of the predictions is.
    """
    folder = config.folder / "eval" / recommender
    inputs = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
    if recommender in MODELS:
        model = require(config.folder / recommender, f"minionerec {recommender}", made_from=inputs)
        inputs[recommender] = model.digest
        check_prompts(model.config, config.resolved_prompts, str(config.folder / recommender))
        if config.resolved_prompts.eval_style == "released":
            log.warning(
                "prompts.eval_style is released: %s is asked with a sentence that it was not trained with, as in the "
                "released's evaluation. The figures measure that mistake.",
                recommender,
            )
    elif recommender not in BUILT_IN:
        command = f"minionerec baseline --baseline.model {recommender}"
        baseline = require(config.folder / "baselines" / recommender, command, made_from={"data": inputs["data"]})
        inputs[f"baselines/{recommender}"] = baseline.digest
    sections = config.section("eval")
    if recommender in MODELS:
        sections["prompts"] = prompts_section(config.resolved_prompts)
    key = content_hash({"config": {**sections, **config.key_fields("eval")}, "seed": config.seed, "inputs": inputs})
    if is_current(folder, key):
        return Manifest.load(folder), False
    dataset = Dataset.load(config.folder / "data")
    if not len(dataset.split(config.eval.split)):
        raise DataError(
            f"{config.folder / 'data'}: the {config.eval.split} split is empty, there is nothing to evaluate; see data.split, "
            "data.parts and data.test_from."
        )
    index = SidIndex.load(config.folder / "sid", dataset)
    with write_artifact(
        folder,
        stage=f"eval/{recommender}",
        key=key,
        config=sections,
        inputs=inputs,
        seed=config.seed,
        resumable=recommender in MODELS,
        collective=True,
    ) as draft:
        if recommender in MODELS:
            predict_with_model(recommender, config, dataset, index, draft.path)
        elif is_main_process():
            write_predictions(draft.path / "predictions.jsonl", listed_predictions(recommender, config, dataset, index))
        if is_main_process():
            metrics = analyse(draft.path, dataset, index, config)
            metrics.write(draft.path / "metrics.json")
            draft.metrics.update({name: cell["value"] for name, cell in metrics.sid.items()})
    return Manifest.load(folder), True


def stages(folder: Path) -> list[str]:
    """What can be evaluated in a run's folder: the floors, each baseline and each trained stage that is there."""
    baselines = sorted(path.parent.name for path in (folder / "baselines").glob(f"*/{MANIFEST}"))
    trained = [stage for stage in MODELS if (folder / stage / MANIFEST).is_file()]
    return [*BUILT_IN, *(name for name in baselines if name not in BUILT_IN), *trained]
