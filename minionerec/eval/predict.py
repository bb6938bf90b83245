"""Stage `eval`: rank the catalogue for every user of a split with a checkpoint, and measure.

Inputs: `data/`, `sid/` and `<stage>/model/` of the run. Outputs per stage: `eval/<stage>/predictions.jsonl` and
`metrics.json`; for the floors the same files under `eval/popularity/` and `eval/repeat/`.

Deviations from the paper: the prompt is the one the model was trained on; the search masks what the catalogue lacks instead
of adding -1e6; the checkpoint's generation settings play no part; metrics are on SIDs and on items, with intervals.

Command: `minionerec eval --config ml-100k`, or `accelerate launch eval/predict.py --config NAME`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate.utils import gather_object
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minionerec.artifacts import (
    MANIFEST,
    Manifest,
    content_hash,
    distributed_state,
    is_current,
    is_main_process,
    require,
    write_artifact,
    write_json,
)
from minionerec.baselines import floors
from minionerec.config import CUTOFFS, Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError
from minionerec.eval.metrics import measure
from minionerec.eval.predictions import Prediction, as_predictions, write_predictions
from minionerec.model import checkpoint
from minionerec.prompts.builder import build_examples, templates_digest
from minionerec.sid.index import SidIndex
from minionerec.tree import CatalogTrie, beam_search, left_pad

MODELS = ("sft", "rl")
FLOORS = ("popularity", "repeat")


def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    index: SidIndex,
    config: Config,
) -> Iterator[Prediction]:
    """Predictions for this rank's share of the split, in the split's order.

    Raises:
        CatalogError: the tokenizer lacks the catalogue's SID tokens.
    """
    state = distributed_state()
    model = model.to(state.device).eval()
    token_ids = checkpoint.sid_token_ids(tokenizer, index)
    trie = CatalogTrie.from_codes(token_ids, state.device)
    item_of = {tuple(sid): item for item, sid in reversed(list(enumerate(token_ids.tolist())))}
    context = getattr(model.config, "max_position_embeddings", None)
    split = config.eval.split
    examples = build_examples("history_sid_to_sid", dataset, index, tokenizer, split=split, context=context)
    rows = list(zip(dataset.split(split).iter_rows(named=True), examples, strict=True))
    with state.split_between_processes(rows) as share, _progress() as progress:
        task = progress.add_task(f"decode {split}", total=len(share), rate="")
        for start in range(0, len(share), config.eval.batch_size):
            batch = share[start : start + config.eval.batch_size]
            ids, mask = left_pad([example.prompt for _, example in batch], tokenizer.pad_token_id, state.device)
            result = beam_search(model, ids, mask, trie=trie, num_beams=config.eval.num_beams)
            lists = zip(batch, result.tokens.tolist(), result.scores.tolist(), result.exact.tolist(), strict=True)
            for (row, _), tokens, scores, exact in lists:
                found = [item_of[tuple(sid)] for sid in tokens if sid[0] >= 0]  # the first item of each SID
                sids = index.codes[found].tolist()
                yield Prediction(
                    user=row["user"],
                    history=row["history"],
                    target=row["target"],
                    target_sid=index.codes[row["target"]].tolist(),
                    sids=sids,
                    items=[item for sid in sids for item in index.items(sid)],
                    scores=scores[: len(found)],
                    exact=exact,
                )
            progress.advance(task, len(batch))
            progress.update(task, rate=f"{progress.tasks[task].speed or 0:.1f} users/s")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        disable=not is_main_process(),
    )


def _by_model(stage: str) -> Callable[[Config, Dataset, SidIndex], list[Prediction]]:
    def predict(config: Config, dataset: Dataset, index: SidIndex) -> list[Prediction]:
        model, tokenizer = checkpoint.load(config.folder / stage / "model")
        found = gather_object(list(decode(model, tokenizer, dataset, index, config)))
        expected = len(dataset.split(config.eval.split))
        if len(found) != expected:
            raise ArtifactError(f"eval/{stage}: {len(found)} predictions for {expected} users; a shard is missing.")
        return found

    return predict


def _popularity(config: Config, dataset: Dataset, index: SidIndex) -> list[Prediction]:
    rankings = floors.popularity(dataset, config.eval.num_beams, config.eval.split)
    return as_predictions(dataset.split(config.eval.split), rankings, index)


def _repeat(config: Config, dataset: Dataset, index: SidIndex) -> list[Prediction]:
    examples = dataset.split(config.eval.split)
    return as_predictions(examples, floors.repeat_last(examples, config.eval.num_beams), index)


RECOMMENDERS: dict[str, Callable[[Config, Dataset, SidIndex], list[Prediction]]] = {
    "popularity": _popularity,
    "repeat": _repeat,
    "sft": _by_model("sft"),
    "rl": _by_model("rl"),
}


def run(config: Config, recommender: str) -> tuple[Manifest, bool]:
    """Predict and measure with one of `RECOMMENDERS`, unless current; returns the manifest and whether it was made anew.

    Raises:
        ArtifactError: an input is missing, or a rank's share of the predictions is.
    """
    folder = config.folder / "eval" / recommender
    inputs = {name: require(config.folder / name, f"minionerec {name}").digest for name in ("data", "sid")}
    if recommender in MODELS:
        model = require(config.folder / recommender, f"minionerec {recommender}", made_from=inputs)
        inputs[recommender] = model.digest
    sections = config.section("eval")
    key = content_hash({"config": sections, "seed": config.seed, "inputs": inputs, "prompts": templates_digest()})
    if is_current(folder, key):
        return Manifest.load(folder), False
    dataset = Dataset.load(config.folder / "data")
    index = SidIndex.load(config.folder / "sid", dataset)
    with write_artifact(
        folder, stage=f"eval/{recommender}", key=key, config=sections, inputs=inputs, seed=config.seed, collective=True
    ) as draft:
        predictions = RECOMMENDERS[recommender](config, dataset, index)
        metrics = measure(predictions, CUTOFFS, config.eval.resamples, config.seed)
        if is_main_process():
            write_predictions(draft.path / "predictions.jsonl", predictions)
            write_json(draft.path / "metrics.json", metrics)
        draft.metrics.update({name: cell["value"] for name, cell in metrics["sid"].items()})
    return Manifest.load(folder), True


def stages(folder: Path) -> list[str]:
    """What can be evaluated in a run's folder: the floors, and each trained stage that is there."""
    return [*FLOORS, *(stage for stage in MODELS if (folder / stage / MANIFEST).is_file())]
