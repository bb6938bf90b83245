"""Command `baseline`: train a sequential recommender, choose its best epoch on valid, rank valid and test with it.

Inputs: `data/` of the run, or a file of sequences (`baseline.protocol`). Outputs in `baselines/<model>/`:
`valid.parquet` and `test.parquet` (user, target, rank, rank without the history, items), `log.jsonl` (one epoch a line) and,
for neural models, `model.safetensors`; with the run's own splits also `vectors.safetensors` (`data/vectors.py`), unless
the model writes codes. `mixture` leaves `weights.json`.

Deviations from the published code: short histories share a row if that changes no result, so a batch is computed without its
padding; the last layer computes only what is read. An epoch's random state depends on seed, epoch and device alone, so that an
interrupted run ends as an uninterrupted one does.

Command: `minionerec baseline --config beauty-sasrec`, or `accelerate launch ... -m minionerec baseline --config NAME`.
"""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minionerec.artifacts import (
    CHECKPOINTS,
    ITEM_STAGES,
    MILLISECONDS,
    Draft,
    Manifest,
    Recipe,
    check_disk_space,
    file_hash,
    require,
)
from minionerec.baselines import weights
from minionerec.baselines.batches import make_batch, partners
from minionerec.baselines.coded import coded_inputs, make_coded
from minionerec.baselines.implementation import options_of
from minionerec.baselines.lists import as_wide_as_choosing_needs, choosing_rows, list_length, search_beams
from minionerec.baselines.models import count_parameters, make
from minionerec.baselines.models.sequential_model import SequentialModel
from minionerec.baselines.ranking import TABLE_CUTOFFS, Ranking, Scorer, rank_split, ranking_metrics, scorer
from minionerec.baselines.ranking_data import RankingData, from_dataset, from_sequences
from minionerec.baselines.trivial import WITH_VECTORS, CacheMixture, TrivialRecommender, make_trivial, needs_vectors
from minionerec.baselines.vectors import vectors_bytes, vectors_of
from minionerec.config import CODED_BASELINES, GENERATIVE_BASELINES, TRIVIAL_BASELINES, Config
from minionerec.data.dataset import Dataset, SplitName
from minionerec.distributed import distributed_state, is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError, ConfigError
from minionerec.recommend.cache.vectors import has_vectors, vectors_digest, vectors_of_run
from minionerec.training.launch import check_precision
from minionerec.training.machine import check_vectors_memory

CHOOSES = "NDCG@10"  # the metric on valid that early stopping watches
_STATE = "state.safetensors"
_WEIGHTS = "weights.json"  # of `mixture`


@dataclasses.dataclass
class Course:
    """How far training has come, and what early stopping remembers.

    Attributes:
        epoch: epochs done.
        best: the best `CHOOSES` on valid so far, rounded as the protocol compares.
        best_epoch: the epoch that reached it, from 0.
        waiting: epochs since then.
        log: one entry per epoch.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = -1
    waiting: int = 0
    log: list[dict[str, float]] = dataclasses.field(default_factory=list)


def load_ranking_data(config: Config) -> RankingData:
    """The examples.

    Raises:
        DataError: the file of sequences is missing or malformed, or a split is empty.
        ArtifactError: the run has no data.
    """
    baseline = config.baseline
    if baseline.sequences is not None:
        return from_sequences(Path(baseline.sequences), baseline.protocol, baseline.max_history)
    require(config.folder / "data", ITEM_STAGES["data"])
    return from_dataset(Dataset.load(config.folder / "data"), baseline.max_history)


def _item_vectors(config: Config) -> np.ndarray | None:
    """The run's item vectors, if the baseline reads them; a file of sequences has none.

    Raises:
        ConfigError: the encoder cannot be loaded.
        DataError: the items have no texts.
    """
    if config.baseline.protocol != "dataset" or config.baseline.model not in WITH_VECTORS:
        return None
    dataset = Dataset.load(config.folder / "data")
    return vectors_of_run(config, dataset) if needs_vectors(config.baseline, has_vectors(config, dataset)) else None


def _inputs(config: Config) -> dict[str, str]:
    """Digests of the sequences or the run's data, of the item vectors that are read, and of the user's own weights."""
    baseline = config.baseline
    if baseline.sequences is not None:
        inputs = {"sequences": file_hash(Path(baseline.sequences))}
    else:
        inputs = {"data": require(config.folder / "data", ITEM_STAGES["data"]).digest}
    if (vectors := _item_vectors(config)) is not None:
        inputs["vectors"] = vectors_digest(vectors)
    inputs |= coded_inputs(config)
    if baseline.weights is not None:
        inputs["weights"] = weights.digest(Path(baseline.weights))
    return inputs


def train_baseline(config: Config) -> tuple[Manifest, bool]:
    """Train and rank, unless the finished artefact is current; returns its manifest and whether it is new.

    Raises:
        ArtifactError: an input is missing, the disk is full, or a checkpoint is damaged.
        ConfigError: an option that the model does not take, or a precision other than the launcher's.
        DataError: the file of sequences is missing or malformed, or a split is empty.
        LockedError: another process trains this baseline.
        TrainingError: training diverged.
    """
    baseline = config.baseline
    check_precision("baseline.bf16", baseline.bf16)
    data = load_ranking_data(config)
    if baseline.weights is not None and baseline.model in TRIVIAL_BASELINES:
        raise ConfigError(f"baseline.weights is set, but {baseline.model} has no weights.")
    sections = config.section("baseline")
    sections["baseline"]["top"] = top = list_length(config, data)
    if baseline.model in GENERATIVE_BASELINES and (beams := search_beams(config, data)) > max(top, *TABLE_CUTOFFS):
        sections["baseline"]["beams"] = beams  # named only if `top` does not say it
    # Digests among the inputs stand for the two files. An option that is not set stays out of the key, so that a new option
    # leaves finished baselines current.
    files = ("sequences", "weights")
    key_fields = {name: value for name, value in sections["baseline"].items() if value is not None and name not in files}
    recipe = Recipe(
        stage=f"baselines/{baseline.model}",
        folder=config.folder / "baselines" / baseline.model,
        config=sections,
        inputs=_inputs(config),
        seed=config.seed,
        key_fields={"baseline": key_fields},
        replace=config.replace,
        wait=config.wait,
        reread=partial(_inputs, config),
    )
    return recipe.make(lambda: _train_and_rank(config, data, top, recipe), collective=True)


def _train_and_rank(config: Config, data: RankingData, top: int, recipe: Recipe) -> None:
    recommender = _fresh(config, data)  # an impossible model is refused before anything is written
    if isinstance(recommender, SequentialModel):
        check_vectors_memory(config.baseline, vectors_bytes(recommender, data))
    with recipe.write(resumable=True, collective=True) as draft:
        score: Scorer = (
            _train_into(draft, recommender, data, config) if isinstance(recommender, SequentialModel) else recommender
        )
        for split in ("test", "valid"):
            began = time.perf_counter()
            ranking = rank_split(score, data, split, top, left_out=True)
            if split == "test":
                milliseconds = 1000 * (time.perf_counter() - began) * distributed_state().num_processes / len(ranking.ranks)
            assert ranking.left_out is not None
            for ranks, words in ((ranking.ranks, ""), (ranking.left_out, ", history left out")):
                draft.metrics.update({f"{split} {name}{words}": value for name, value in ranking_metrics(ranks).items()})
            if is_main_process():
                frame(data, split, ranking).write_parquet(draft.path / f"{split}.parquet")
        draft.metrics[MILLISECONDS] = round(milliseconds, 3)
        if isinstance(recommender, CacheMixture) and is_main_process():
            recommender.mixture.weights.save(draft.path / _WEIGHTS)


def frame(data: RankingData, split: SplitName, ranking: Ranking) -> pl.DataFrame:
    """A ranking as a table, one row per example: user, target, rank (0-based; infinite if never recommended), items, and
    `rank_left_out`, the rank among the items outside the history.

    Items are 0-based, as in a Dataset; -1 is the padding row, which the protocol `wearec` ranks too.
    """
    rows = data.rows[split]
    return pl.DataFrame(
        {
            "user": [data.users[user] for user in rows.user],
            "target": pl.Series(rows.target - 1, dtype=pl.Int32),
            "rank": pl.Series(ranking.ranks, dtype=pl.Float64),
            "rank_left_out": pl.Series(ranking.left_out, dtype=pl.Float64),
            "items": pl.Series([ids - 1 for ids in ranking.lists], dtype=pl.List(pl.Int32)),
        }
    )


def _fresh(config: Config, data: RankingData) -> SequentialModel | TrivialRecommender:
    """A model with fresh weights, or a trivial recommender that is ready to score."""
    if config.baseline.model in TRIVIAL_BASELINES:
        return make_trivial(config.baseline, data, _item_vectors(config))
    torch.manual_seed(config.seed)
    if config.baseline.model in CODED_BASELINES:
        return make_coded(config, search_beams(config, data))
    return make(config.baseline, data.items)


def _train_into(draft: Draft, model: SequentialModel, data: RankingData, config: Config) -> Scorer:
    """Train a neural baseline, or load its weights, into its artefact; returns the scorer of its best epoch."""
    folder, metrics = draft.path, draft.metrics
    parameters = count_parameters(model)
    size_of_vectors = vectors_bytes(model, data)
    # Last and next checkpoint: weights, the best weights, two moments.
    check_disk_space(folder, parameters * 4 * 10 + size_of_vectors)
    metrics["parameters"] = parameters
    device = distributed_state().device
    if config.baseline.weights is not None:
        settings = {"max_history": config.baseline.max_history, **dataclasses.asdict(options_of(config.baseline))}
        if matched := weights.load(model, Path(config.baseline.weights), settings):
            metrics["matched_by_shape"] = matched
        model.to(device)
    else:
        course, processes = fit(model, data, config, folder / CHECKPOINTS)
        metrics.update(
            epochs=course.epoch,
            best_epoch=course.best_epoch,
            seconds_per_epoch=round(float(np.median([entry["seconds"] for entry in course.log])), 2),
            devices=processes,
        )
        if is_main_process():
            (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in course.log))
    if is_main_process():
        weights.save(model, folder / "model.safetensors")
        if size_of_vectors:
            vectors_of(model, data, config.baseline, device).save(folder)
    return scorer(model, config.baseline.max_history, data.protocol, device)


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Set torch's random state for one epoch on one device, from the arguments alone."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, process]).generate_state(1)[0]))


def fit(model: SequentialModel, data: RankingData, config: Config, checkpoints: Path) -> tuple[Course, int]:
    """Train until early stopping; afterwards the model has the weights of its best epoch.

    Each epoch leaves a checkpoint in the folder `checkpoints`, and training resumes from one that is there.

    Returns:
        the course of the training, and the number of devices.

    Raises:
        ArtifactError: the checkpoint is damaged.
        TrainingError: scores are not numbers any more.
    """
    baseline, protocol = config.baseline, data.protocol
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if baseline.bf16 else "no",
        # Some parameters never learn: TRM4Rec's first states, WEARec's gate.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=baseline.learning_rate, weight_decay=baseline.weight_decay, fused=True)
    course, best = Course(), _copy(model)
    if (checkpoints / _STATE).is_file():
        course, best = restore(checkpoints / _STATE, model, optimizer)
    model.to(accelerator.device)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    score = scorer(model, baseline.max_history, protocol, accelerator.device)
    chooses = choosing_rows(data, config)
    console = Console(emoji=False, quiet=not accelerator.is_main_process, highlight=False, soft_wrap=True)
    while course.epoch < baseline.epochs and course.waiting < baseline.patience:
        began = time.monotonic()
        loss = train_epoch(wrapped, model, data, accelerator, optimizer, config, course.epoch)
        trained = time.monotonic() - began
        with as_wide_as_choosing_needs(model):
            value = ranking_metrics(rank_split(score, chooses, "valid").ranks)[CHOOSES]
        compared = value if protocol.decimals is None else round(value, protocol.decimals)
        if compared > course.best or (protocol.equal_is_better and compared == course.best):
            course.best, course.best_epoch, course.waiting, best = compared, course.epoch, 0, _copy(model)
        else:
            course.waiting += 1
        course.log.append({"epoch": course.epoch, "loss": loss, f"valid {CHOOSES}": value, "seconds": trained})
        console.print(
            f"{baseline.model} epoch {course.epoch}: loss {loss:.4f}, valid {CHOOSES} {value:.4f} (best {course.best:.4f} at "
            f"{course.best_epoch}), {trained:.1f} s and {time.monotonic() - began - trained:.1f} s for valid"
        )
        course.epoch += 1
        if accelerator.is_main_process:
            store(checkpoints / _STATE, model, optimizer, course, best)
        wait_for_everyone()
    model.load_state_dict(best)
    return course, accelerator.num_processes


def _copy(model: SequentialModel) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def train_epoch(
    wrapped: torch.nn.Module,
    model: SequentialModel,
    data: RankingData,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    config: Config,
    epoch: int,
) -> float:
    """One pass over the shuffled rows; returns the mean loss of the steps. Every device takes its share of each batch."""
    baseline, processes, process = config.baseline, accelerator.num_processes, accelerator.process_index
    rows = data.rows["train"]
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(rows))
    sources = [np.arange(len(rows))]  # for each row, the rows whose histories a step reads
    if model.contrasts:
        sources.append(partners(rows.target, rng))
    seed_epoch(config.seed, epoch, process)
    wrapped.train()
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    starts = range(0, len(order), baseline.batch_size)
    for start in starts:
        drawn = order[start : start + baseline.batch_size]
        share = drawn[process::processes]
        # A device without a share computes any row with weight 0, because all devices must take part in each step.
        parts = [rows.take(source[share if len(share) else drawn[:1]]) for source in sources]
        layout: dict[str, Any] = {"layout": model.layout, "side": data.protocol.side, "max_history": baseline.max_history}
        batches = [make_batch(part, **layout).to(accelerator.device) for part in parts]
        with accelerator.autocast():
            # Devices average their gradients. With this weight the step's loss is the mean over all its rows.
            loss = wrapped(*batches) * (len(share) * processes / len(drawn))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
    return float(accelerator.reduce(total, "mean")) / len(starts)


def store(
    path: Path, model: SequentialModel, optimizer: torch.optim.Optimizer, course: Course, best: dict[str, Tensor]
) -> None:
    """Write a checkpoint in one file, through a temporary name: weights, the best weights, Adam's state, the course."""
    tensors = {f"model.{name}": values for name, values in model.state_dict().items()}
    tensors |= {f"best.{name}": values for name, values in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": values for name, values in state.items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: values.contiguous() for name, values in tensors.items()}, temporary, {"course": json.dumps(vars(course))})
    temporary.replace(path)


def restore(path: Path, model: SequentialModel, optimizer: torch.optim.Optimizer) -> tuple[Course, dict[str, Tensor]]:
    """Read a checkpoint that `store` wrote into model and optimizer; returns the course and the best weights.

    Raises:
        ArtifactError: it is damaged.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
    try:
        with safe_open(path, "pt") as file:
            course = Course(**json.loads(file.metadata()["course"]))
            for name in file.keys():  # noqa: SIM118 - safe_open is no dictionary
                part, _, rest = name.partition(".")
                parts[part][rest] = file.get_tensor(name)
        model.load_state_dict(parts["model"])
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path}: not a checkpoint of this model ({error}). Delete {path.parent.parent} to train from the start."
        ) from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, values in parts["adam"].items():
        number, _, rest = name.partition(".")
        state.setdefault(int(number), {})[rest] = values
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return course, parts["best"]
