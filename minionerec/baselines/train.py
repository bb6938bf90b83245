"""Command `baseline`: train a sequential recommender, choose its best epoch on valid, rank valid and test with it.

Inputs: `data/` of the run, or a file of sequences (`baseline.protocol`). Outputs in `baselines/<model>/`:
`valid.parquet` and `test.parquet` (user, target, rank, items), `log.jsonl` (one epoch a line) and, for neural models,
`model.safetensors`; with the run's own splits `vectors.safetensors`, from which any (history, item) can be scored.

Deviations from the published code: short histories are computed together in one row where that changes no result, so a batch
is the same batch without its padding; the last layer computes only what is read. An epoch's random state depends on seed,
epoch and device alone, so that an interrupted run ends as an uninterrupted one.

Command: `minionerec baseline --config beauty-sasrec`, or `accelerate launch ... -m minionerec baseline --config NAME`.
"""

import dataclasses
import json
import time
from collections.abc import Callable
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
    Draft,
    Manifest,
    Recipe,
    check_disk_space,
    file_hash,
    require,
)
from minionerec.baselines import weights
from minionerec.baselines.batches import make_batch, partners
from minionerec.baselines.models import chosen, count_parameters, make
from minionerec.baselines.models.recommender import Recommender
from minionerec.baselines.ranking import Ranking, Scorer, rank, scorer
from minionerec.baselines.ranking_data import Task, from_dataset, from_sequences
from minionerec.baselines.trivial import TRIVIAL
from minionerec.config import BaselineConfig, Config
from minionerec.data.dataset import SPLITS, Dataset, SplitName
from minionerec.data.vectors import BaselineVectors
from minionerec.distributed import distributed_state, is_main_process, wait_for_everyone
from minionerec.errors import ArtifactError, ConfigError
from minionerec.training.launch import check_precision

Measure = Callable[[np.ndarray], dict[str, float]]  # 0-based ranks to metrics by name
CHOOSES = "NDCG@10"  # the metric on valid that early stopping watches
_STATE = "state.safetensors"


@dataclasses.dataclass
class Course:
    """How far training has come; what early stopping remembers.

    Attributes:
        epoch: epochs done.
        best: the best `CHOOSES` on valid so far, rounded as the protocol compares.
        best_epoch: its epoch, from 0.
        waiting: epochs since without a better one.
        log: one entry per epoch.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = -1
    waiting: int = 0
    log: list[dict[str, float]] = dataclasses.field(default_factory=list)


def load_task(config: Config) -> tuple[Task, dict[str, str]]:
    """The examples, and the digests of what they were made from.

    Raises:
        DataError: the file of sequences is missing or malformed, or a split is empty.
        ArtifactError: the run has no data.
    """
    baseline = config.baseline
    if baseline.sequences is not None:
        path = Path(baseline.sequences)
        task = from_sequences(path, baseline.protocol, baseline.max_history)
        return task, {"sequences": file_hash(path)}
    digest = require(config.folder / "data", ITEM_STAGES["data"]).digest
    return from_dataset(Dataset.load(config.folder / "data"), baseline.max_history), {"data": digest}


def run(config: Config, measure: Measure) -> tuple[Manifest, bool]:
    """Train and rank, unless the finished artefact is current; returns its manifest and whether it was made anew.

    Args:
        measure: metrics of ranks; it must give `CHOOSES`.

    Raises:
        ArtifactError: an input is missing, the disk is full, or a checkpoint is damaged.
        ConfigError: an option that the model does not take, or a precision other than the launcher's.
        DataError: see `load_task`.
        TrainingError: training diverged.
    """
    baseline = config.baseline
    check_precision("baseline.bf16", baseline.bf16)
    task, inputs = load_task(config)
    if baseline.weights is not None:
        if baseline.model in TRIVIAL:
            raise ConfigError(f"baseline.weights is set, but {baseline.model} has no weights.")
        inputs["weights"] = weights.digest(Path(baseline.weights))
    sections = config.section("baseline")
    sections["baseline"]["top"] = top = list_length(config, task)
    # Of files the digests decide, which are among the inputs; what is not set decides nothing.
    files = ("sequences", "weights")
    decisive = {name: value for name, value in sections["baseline"].items() if value is not None and name not in files}
    recipe = Recipe(
        stage=f"baselines/{baseline.model}",
        folder=config.folder / "baselines" / baseline.model,
        config=sections,
        inputs=inputs,
        seed=config.seed,
        key_fields={"baseline": decisive},
        replace=config.replace,
    )
    if (manifest := recipe.finished()) is not None:
        return manifest, False
    made = _made(config, task)  # a model that cannot be is refused before anything is written
    with recipe.write(resumable=True, collective=True) as draft:
        score = _neural(made, config, task, measure, draft) if isinstance(made, Recommender) else made
        for split in ("test", "valid"):
            ranking = rank(score, task, split, top)
            draft.metrics.update({f"{split} {name}": value for name, value in measure(ranking.ranks).items()})
            if is_main_process():
                frame(task, split, ranking).write_parquet(draft.path / f"{split}.parquet")
    return Manifest.load(recipe.folder), True


def list_length(config: Config, task: Task) -> int:
    """Items in the stored lists: `baseline.top`, or more where `eval` will take each history out of them."""
    top = config.baseline.top
    if not config.eval.exclude_history or config.baseline.protocol != "dataset":
        return top
    longest = max(int((rows.stop - rows.seen).max()) for name, rows in task.rows.items() if name != "train")
    return max(top, config.eval.num_beams + longest)


def frame(task: Task, split: SplitName, ranking: Ranking) -> pl.DataFrame:
    """A ranking as a table, one row per example: user, target, rank (0-based; infinite where never recommended), items.

    Items are 0-based, as in a Dataset; -1 is the padding row, which the protocol `wearec` ranks.
    """
    rows = task.rows[split]
    return pl.DataFrame(
        {
            "user": [task.users[user] for user in rows.user],
            "target": pl.Series(rows.target - 1, dtype=pl.Int32),
            "rank": pl.Series(ranking.ranks, dtype=pl.Float64),
            "items": pl.Series([ids - 1 for ids in ranking.lists], dtype=pl.List(pl.Int32)),
        }
    )


def _made(config: Config, task: Task) -> Recommender | Scorer:
    """A model with fresh weights, or a floor that is ready to score."""
    if floor := TRIVIAL.get(config.baseline.model):
        return floor(task, **chosen(config.baseline, floor))
    torch.manual_seed(config.seed)
    return make(config.baseline, task.items)


def _neural(model: Recommender, config: Config, task: Task, measure: Measure, draft: Draft) -> Scorer:
    """Train a neural baseline into its artefact; returns how its best epoch scores."""
    folder, metrics = draft.path, draft.metrics
    parameters = count_parameters(model)
    check_disk_space(folder, parameters * 4 * 10)  # last and next checkpoint: weights, the best weights, two moments
    metrics["parameters"] = parameters
    device = distributed_state().device
    if config.baseline.weights is not None:
        if matched := weights.load(model, Path(config.baseline.weights)):
            metrics["matched_by_shape"] = matched
        model.to(device)
    else:
        course, processes = fit(model, task, config, measure, folder / CHECKPOINTS)
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
        if config.baseline.protocol == "dataset":
            vectors(model, task, config.baseline, device).save(folder)
    return scorer(model, config.baseline.max_history, task.protocol, device)


def seed_epoch(seed: int, epoch: int, process: int) -> None:
    """Set torch's random state for one epoch on one device; nothing else than the arguments decides it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, process]).generate_state(1)[0]))


def fit(model: Recommender, task: Task, config: Config, measure: Measure, checkpoints: Path) -> tuple[Course, int]:
    """Train until early stopping; the model is left with the weights of the best epoch. Returns its course
    and the number of devices.

    After each epoch everything is written into `checkpoints`; with a checkpoint there, training goes on from it.

    Raises:
        ArtifactError: the checkpoint is damaged.
        TrainingError: scores are not numbers any more.
    """
    baseline, protocol = config.baseline, task.protocol
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
    console = Console(quiet=not accelerator.is_main_process, highlight=False, soft_wrap=True)
    while course.epoch < baseline.epochs and course.waiting < baseline.patience:
        began = time.monotonic()
        loss = train_epoch(wrapped, model, task, accelerator, optimizer, config, course.epoch)
        trained = time.monotonic() - began
        value = measure(rank(score, task, "valid").ranks)[CHOOSES]
        compared = value if protocol.decimals is None else round(value, protocol.decimals)
        if compared > course.best or (protocol.equal_is_better and compared == course.best):
            course.best, course.best_epoch, course.waiting, best = compared, course.epoch, 0, _copy(model)
        else:
            course.waiting += 1
        course.log.append({"epoch": course.epoch, "loss": loss, f"valid {CHOOSES}": value, "seconds": trained})
        console.print(
            f"{baseline.model} epoch {course.epoch}: loss {loss:.4f}, valid {CHOOSES} {value:.4f} (best {course.best:.4f} at "
            f"{course.best_epoch}), {trained:.1f} s"
        )
        course.epoch += 1
        if accelerator.is_main_process:
            store(checkpoints / _STATE, model, optimizer, course, best)
        wait_for_everyone()
    model.load_state_dict(best)
    return course, accelerator.num_processes


def _copy(model: Recommender) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def train_epoch(
    wrapped: torch.nn.Module,
    model: Recommender,
    task: Task,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    config: Config,
    epoch: int,
) -> float:
    """One pass over the shuffled rows; returns the mean loss of the steps. Every device takes its share of each batch."""
    baseline, processes, process = config.baseline, accelerator.num_processes, accelerator.process_index
    rows = task.rows["train"]
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(len(rows))
    read = [np.arange(len(rows))]  # the rows whose histories a step reads for each of its rows
    if model.contrasts:
        read.append(partners(rows.target, rng))
    seed_epoch(config.seed, epoch, process)
    wrapped.train()
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    starts = range(0, len(order), baseline.batch_size)
    for start in starts:
        whole = order[start : start + baseline.batch_size]
        share = whole[process::processes]
        parts = [rows.take(which[share if len(share) else whole[:1]]) for which in read]
        layout: dict[str, Any] = {"layout": model.layout, "side": task.protocol.side, "max_history": baseline.max_history}
        batches = [make_batch(part, **layout).to(accelerator.device) for part in parts]
        with accelerator.autocast():
            # Devices average their gradients: weighed so, the step's loss is the mean over all its rows.
            loss = wrapped(*batches) * (len(share) * processes / len(whole))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
    return float(accelerator.reduce(total, "mean")) / len(starts)


def store(path: Path, model: Recommender, optimizer: torch.optim.Optimizer, course: Course, best: dict[str, Tensor]) -> None:
    """Write a checkpoint in one file, through a temporary name: weights, the best weights, Adam's state, the course."""
    tensors = {f"model.{name}": values for name, values in model.state_dict().items()}
    tensors |= {f"best.{name}": values for name, values in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": values for name, values in state.items()}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: values.contiguous() for name, values in tensors.items()}, temporary, {"course": json.dumps(vars(course))})
    temporary.replace(path)


def restore(path: Path, model: Recommender, optimizer: torch.optim.Optimizer) -> tuple[Course, dict[str, Tensor]]:
    """Read a checkpoint that `store` wrote into model and optimizer; returns the course and the best weights.

    Raises:
        ArtifactError: it is damaged.
    """
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
    try:
        with safe_open(path, "pt") as file:
            course = Course(**json.loads(file.metadata()["course"]))
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                part, _, rest = name.partition(".")
                parts[part][rest] = file.get_tensor(name)
        model.load_state_dict(parts["model"])
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{path}: not a checkpoint of this model ({error}). Delete {path.parent.parent} to begin anew."
        ) from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, values in parts["adam"].items():
        number, _, rest = name.partition(".")
        state.setdefault(int(number), {})[rest] = values
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return course, parts["best"]


def vectors(model: Recommender, task: Task, config: BaselineConfig, device: torch.device) -> BaselineVectors:
    """What scores any item after any history of a split, on the CPU."""
    items = model.vectors()[1:].detach().float().cpu().contiguous()
    # A state of zeros scores each item's bias.
    bias = model.logits(torch.zeros(1, items.shape[1], device=device))[0, 1:].detach().float().cpu()
    states: dict[SplitName, np.ndarray] = {}
    for split in SPLITS:
        rows = task.rows[split]
        parts = []
        for start in range(0, len(rows), 512):
            part = rows.take(np.arange(start, min(start + 512, len(rows))))
            batch = make_batch(part, layout=model.layout, side=task.protocol.side, max_history=config.max_history)
            with torch.no_grad():
                parts.append(model.eval().states(batch.to(device)).float().cpu())
        states[split] = torch.cat(parts).numpy()
    return BaselineVectors(items.numpy(), bias.numpy(), states)
