"""Stage `lego`: a content recommender of three parts learns from pairs, or from the examples of the run's splits.

Inputs: `<run>/pairs`, or `<run>/data` (`lego.task`); the language model of `lego.plm`, if the item encoder is one. Outputs:
`<run>/lego/<task>/<title>/` with `model.safetensors`, `pieces.json` (the tokenizer of texts), `log.jsonl` (one epoch a line)
and, on lists, `valid.parquet` and `test.parquet`, the ranked catalog as baselines store it. `<run>/scoring/lego-<title>/` has
the scores of pairs.
Differs from Legommenders (Liu et al., 2024): drawn negatives are distinct and none of the user's items; users are shuffled; of
equal epochs the first is kept. A training that was interrupted resumes and ends with the same weights.
Command: `minionerec lego --config ml-100k-lego`.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load_file, save_file
from torch.nn import functional

from minionerec.artifacts import CHECKPOINTS, MANIFEST, MILLISECONDS, Draft, Manifest, Recipe, check_disk_space, require
from minionerec.config import Config, LegoConfig
from minionerec.config.lego import options_of
from minionerec.data.dataset import Dataset
from minionerec.data.pairs import PairSet
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ArtifactError, ConfigError, TrainingError
from minionerec.legommenders.caches import CachedScores
from minionerec.legommenders.carbon import Meter
from minionerec.legommenders.catalog_fields import item_fields
from minionerec.legommenders.examples import Examples, check_negatives, draw_negatives, histories, of_dataset, of_pairs
from minionerec.legommenders.model import Legommender, fewest_parameters
from minionerec.model import pretrained
from minionerec.statistics.pair_metrics import ScoredPairs, per_user
from minionerec.training.epochs import Course, Epochs, Learner, resume, run_epochs, seed_epoch
from minionerec.training.machine import check_lego_memory
from minionerec.training.ranking import (
    DIVERGED,
    TIES,
    choosing_ranks,
    frame,
    rank_split,
    ranking_metrics,
    split_metrics,
    without_histories,
)
from minionerec.training.ranking_data import RankingData, choosing_rows, from_dataset, stored_length
from minionerec.training.scored_pairs import pairs_of_split, refuse_one_sided, score_recipe, write_scores

log = logging.getLogger(__name__)
FOLDER = "lego"
COMMAND = "minionerec lego"
CHOOSES = {"pairs": "GAUC", "lists": "NDCG@10"}  # the metric on valid that early stopping watches
_MODEL, _PIECES = "model.safetensors", "pieces.json"


@dataclass(frozen=True)
class Task:
    """What is learnt from, and what the recommender is measured on.

    Attributes:
        examples: rows of all splits.
        catalog: the items.
        data: the same examples as baselines rank them; None on pairs.
        where: the folder of the input, for messages.
    """

    examples: Examples
    catalog: pl.DataFrame
    data: RankingData | None
    where: Path


def load_task(config: Config) -> Task:
    """Read the run's pairs or its Dataset.

    Raises:
        ArtifactError: they are not prepared.
        DataError: a history is empty; no user of train or valid has both labels; or a user leaves no negatives.
    """
    lego, examples = config.lego, None
    if lego.task == "pairs":
        pairs = PairSet.load(config.folder / "pairs")
        refuse_one_sided(pairs, config)
        examples = of_pairs(pairs, lego.history)
        task = Task(examples, pairs.catalog, None, config.folder / "pairs")
    else:
        dataset = Dataset.load(config.folder / "data")
        data = from_dataset(dataset, lego.history)
        examples = of_dataset(dataset, data)
        task = Task(examples, dataset.catalog, data, config.folder / "data")
    if lego.drawn:
        check_negatives(examples, lego.drawn)
    return task


def make_model(config: Config, task: Task, pieces: str | None = None) -> Legommender:
    """The model with fresh weights, drawn by the seed.

    Args:
        pieces: the tokenizer of a trained recipe, see `ItemFields`; None learns one.

    Raises:
        ConfigError: the parts do not fit, are too large for this machine, or the language model cannot be read.
        DataError: `lego.fields` names one that no item has.
    """
    fields = item_fields(task.catalog, config.lego, task.examples.trained, str(task.where), pieces)
    check_lego_memory(fewest_parameters(config.lego, fields))
    torch.manual_seed(config.seed)
    return Legommender(config.lego, fields)


def train_lego(config: Config) -> tuple[Manifest, bool]:
    """Train, and rank on lists, unless the finished artefact is current; returns its manifest and whether it is new.

    Raises:
        ArtifactError: an input is missing, the disk is full, or a checkpoint is damaged.
        ConfigError: the configuration is impossible, or would replace a model that was trained with another.
        DataError: the data are too few, or lack a field.
        LockedError: another process trains this recipe.
        TrainingError: training diverged.
    """
    recipe = _recipe(config)
    return recipe.make(lambda: _train(config, recipe), collective=True)


def _recipe(config: Config) -> Recipe:
    lego = config.lego
    title = f"{FOLDER}/{lego.task}/{lego.title}"
    sections, deciding = config.section("lego"), config.key_fields("lego")
    if lego.task == "lists":
        sections["lego"] |= TIES
        deciding["lego"] |= TIES
    if lego.task == "lists" and config.eval.exclude_history:  # lists from which histories are taken out are stored longer
        require(config.folder / "data", "minionerec data prepare")
        data = from_dataset(Dataset.load(config.folder / "data"), lego.history)
        added = {"top": stored_length(lego.top, config, data), "chosen_by": without_histories(CHOOSES["lists"])}
        sections["lego"].update(added)
        deciding["lego"].update(added)

    if lego.parts.item == "plm" and _identity(lego) is not None:  # the files decide, wherever they lie; of the hub, the name
        del deciding["lego"]["plm"]["path"]

    def inputs() -> dict[str, str]:
        if lego.task == "pairs":
            digests = {"pairs": require(config.folder / "pairs", "minionerec pairs prepare").digest}
        else:
            digests = {"data": require(config.folder / "data", "minionerec data prepare").digest}
        return digests | _model_digest(lego)

    folder, replace_, wait = config.folder / title, config.replace, config.wait
    return Recipe(title, folder, sections, inputs(), config.seed, deciding, replace_, wait, inputs)


def _model_digest(lego: LegoConfig) -> dict[str, str]:
    """What identifies the language model of `plm`; empty without one."""
    return {"plm": _identity(lego) or lego.plm.path} if lego.parts.item == "plm" else {}


def _identity(lego: LegoConfig) -> str | None:
    """Identifies the files of the language model; None for a name of the hub, whose content is not known."""
    from minionerec.legommenders.plm import plm_folder

    return pretrained.identity(plm_folder(lego.plm))


def _train(config: Config, recipe: Recipe) -> None:
    task = load_task(config)
    with Meter(config.green) as meter:
        model = make_model(config, task)  # an impossible one is refused before anything is written
        _train_into(recipe, model, task, config, meter)


def _train_into(recipe: Recipe, model: Legommender, task: Task, config: Config, meter: Meter) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    check_disk_space(recipe.folder, parameters * 4 * 10)  # last and next checkpoint: weights, the best weights, two moments
    with recipe.write(resumable=True, collective=True) as draft:
        course, processes = fit(model, task, config, draft.path / CHECKPOINTS, meter)
        draft.metrics.update(
            {f"best valid {CHOOSES[config.lego.task]}": course.best},
            parameters=parameters,
            epochs=course.epoch,
            best_epoch=course.best_epoch,
            items_trained=int(task.examples.trained.sum()),
            **_costs(course, meter),
            devices=processes,
        )
        if is_main_process():
            weights = {name: values.detach().cpu().contiguous() for name, values in model.state_dict().items()}
            save_file(weights, draft.path / _MODEL)
            if model.pieces is not None:  # so that no other version of the package `tokenizers` numbers the words anew
                (draft.path / _PIECES).write_text(model.pieces, encoding="utf-8")
            (draft.path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in course.log))
        if task.data is not None:
            _rank(model, task.data, recipe.config["lego"]["top"], draft)


def _costs(course: Course, meter: Meter) -> dict[str, Any]:
    """What all epochs took together, those of interrupted commands included; without emissions if an epoch has none."""
    names = [name for name in ("cpu_seconds", "wall_seconds", "grams_co2e") if all(name in entry for entry in course.log)]
    costs: dict[str, Any] = {name: sum(entry[name] for entry in course.log) for name in names}
    return costs | ({"emissions": meter.note} if "grams_co2e" in costs and meter.note is not None else {})


def _rank(model: Legommender, data: RankingData, top: int, draft: Draft) -> None:
    """Rank the catalog for valid and test, and keep the lists as baselines do."""
    score = CachedScores(model, data.items, distributed_state().device).catalog
    for split in ("test", "valid"):
        began = time.perf_counter()
        ranking = rank_split(score, data, split, top, left_out=True)
        if split == "test":
            each = 1000 * (time.perf_counter() - began) * distributed_state().num_processes / len(ranking.ranks)
            draft.metrics[MILLISECONDS] = round(each, 3)
            middle = ranking.ranks + (ranking.ties - 1) / 2  # of equal scores, half are below the target
            draft.metrics["test AUC"] = float(1 - np.minimum(middle, data.items - 1).mean() / (data.items - 1))
        draft.metrics.update(split_metrics(ranking, split))
        if is_main_process():
            frame(data, split, ranking).write_parquet(draft.path / f"{split}.parquet")


def fit(model: Legommender, task: Task, config: Config, checkpoints: Path, meter: Meter) -> tuple[Course, int]:
    """Train until early stopping; afterwards the model has the weights of its best epoch.

    Returns:
        the course of the training, and the number of devices.

    Raises:
        ArtifactError: a checkpoint is damaged.
        TrainingError: scores are not numbers any more.
    """
    lego = config.lego
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # e.g. words that no text of a batch has
    )
    slow = list(model.slow_parameters())
    others = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and not any(parameter is other for other in slow)
    ]
    groups: list[dict[str, Any]] = [{"params": others, "peak": lego.learning_rate}]
    if slow:
        groups.append({"params": slow, "peak": lego.item_lr or lego.learning_rate})
    optimizer = torch.optim.Adam(groups, lr=lego.learning_rate)
    learner = Learner(model, optimizer, accelerator, checkpoints)
    begun = resume(learner)
    model.to(accelerator.device)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    schedule = Epochs(f"{FOLDER} {lego.title}", CHOOSES[lego.task], lego.epochs, lego.patience, figures=meter.lap)
    course = run_epochs(
        replace(learner, optimizer=prepared),
        begun,
        schedule,
        lambda epoch: train_epoch(wrapped, task.examples, accelerator, prepared, config, epoch),
        _validation(model, task, config, accelerator.device),
    )
    return course, accelerator.num_processes


def _validation(model: Legommender, task: Task, config: Config, device: torch.device) -> Callable[[], float]:
    """A function that measures the model as it is on valid."""
    scores = CachedScores(model, task.examples.items, device)
    if task.data is not None:
        chooses = choosing_rows(task.data, config.lego.valid_examples, config.seed)
        exclude = config.eval.exclude_history
        return lambda: ranking_metrics(*choosing_ranks(scores.catalog, chooses, exclude))[CHOOSES["lists"]]
    rows, labels = task.examples.rows["valid"], task.examples.labels["valid"]
    _, users = np.unique(rows.user, return_inverse=True)

    def gauc() -> float:
        logits = scores.pairs(rows).astype(float)
        if not np.isfinite(logits).all():
            raise TrainingError(DIVERGED)
        return float(per_user(ScoredPairs(users, labels, logits))["GAUC"].mean())

    return gauc


def train_epoch(
    wrapped: torch.nn.Module,
    examples: Examples,
    accelerator: Accelerator,
    optimizer: Any,
    config: Config,
    epoch: int,
) -> float:
    """One pass over the shuffled rows; returns the mean loss of the steps. Every device takes its share of each batch."""
    lego, processes, process = config.lego, accelerator.num_processes, accelerator.process_index
    rows, labels = examples.rows["train"], examples.labels["train"]
    learnt = np.flatnonzero(labels == 1) if lego.drawn else np.arange(len(rows))
    rng = np.random.default_rng([config.seed, epoch])
    order = rng.permutation(learnt)
    seed_epoch(config.seed, epoch, process)
    wrapped.train()
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    starts = range(0, len(order), lego.batch_size)
    for step, start in enumerate(starts):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - (epoch * len(starts) + step) / (lego.epochs * len(starts)))
        drawn = order[start : start + lego.batch_size]
        candidates = rows.target[drawn, None].astype(np.int64) - 1
        if lego.drawn:  # every process draws for all rows, so that the number of processes changes no draw
            negatives = draw_negatives(examples, rows.user[drawn], lego.drawn, rng)
            candidates = np.concatenate([candidates, negatives], axis=1)
        share = np.arange(len(drawn))[process::processes]
        # A device without a share computes any row with weight 0, because all devices must take part in each step.
        own = share if len(share) else np.zeros(1, np.int64)
        shown = histories(rows.take(drawn[own])).to(accelerator.device)
        logits = wrapped(shown, torch.from_numpy(candidates[own]).to(accelerator.device))
        # Devices average their gradients. With this weight the step's loss is the mean over all its rows.
        loss = _loss(logits, labels[drawn[own]], lego) * (len(share) * processes / len(drawn))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.detach()
    return float(accelerator.reduce(total, "mean")) / len(starts)


def _loss(logits: torch.Tensor, labels: np.ndarray, lego: LegoConfig) -> torch.Tensor:
    """The mean loss of a batch's rows.

    Args:
        logits: (rows, 1 + drawn), the row's own candidate first.
        labels: (rows,) of the rows' own candidates.
    """
    if lego.loss == "matching":
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    wanted = torch.zeros_like(logits)
    wanted[:, 0] = torch.from_numpy(labels.astype(np.float32)).to(logits.device)
    return functional.binary_cross_entropy_with_logits(logits, wanted)


class Trained(NamedTuple):
    """A trained recipe of the run's pairs, and these pairs."""

    model: Legommender
    task: Task
    lego: LegoConfig


def load_lego(config: Config, title: str) -> Trained:
    """Read a recipe that was trained on the run's pairs.

    Raises:
        ArtifactError: it is not trained, was trained on other pairs or another language model, or is damaged.
        ConfigError: its language model is not installed, or not in the cache.
    """
    folder = config.folder / FOLDER / "pairs" / title
    pairs = require(config.folder / "pairs", "minionerec pairs prepare").digest
    manifest = require(folder, f"{COMMAND} --lego.task pairs", made_from={"pairs": pairs})
    lego = LegoConfig.of_manifest(manifest.config["lego"])
    if lego.parts.item == "plm":
        lego = _where_it_lies(lego, config.lego.plm.path, manifest.inputs["plm"], folder)
    own = replace(config, lego=lego, seed=manifest.seed)
    task = load_task(own)
    words = folder / _PIECES
    model = make_model(own, task, words.read_text(encoding="utf-8") if words.is_file() else None)
    try:
        model.load_state_dict(load_file(folder / _MODEL))
    except (RuntimeError, OSError) as error:
        raise ArtifactError(f"{folder / _MODEL}: not the weights of this recipe ({error}). Run again: {COMMAND}") from None
    return Trained(model, task, lego)


def _where_it_lies(lego: LegoConfig, path: str, digest: str, folder: Path) -> LegoConfig:
    """The recipe with the path at which its language model lies now: the one of then, else that of the configuration.

    Args:
        path: of the configuration.
        digest: of the model that it was trained on.
        folder: of the recipe, for the message.

    Raises:
        ArtifactError: the model lies at neither of them.
        ConfigError: the one of then is not installed, or not in the cache, and the model does not lie at the other path either.
    """
    absent = None
    for present in dict.fromkeys((lego.plm.path, path)):
        there = replace(lego, plm=replace(lego.plm, path=present))
        try:
            if _model_digest(there)["plm"] == digest:
                return there
        except ConfigError as error:  # its package is not installed, or it is not in the cache
            absent = error if present == lego.plm.path else absent  # nobody may have asked for the other one
    if absent is not None:
        raise absent
    raise ArtifactError(
        f"{folder}: was trained on another language model than {lego.plm.path} is now. Put that one back, name the folder that "
        f"it was moved to ({COMMAND} {options_of(folder.name)} --lego.plm.path FOLDER), or train again: {COMMAND} --lego.task "
        "pairs --replace"
    )


def trained_on_pairs(config: Config) -> list[str]:
    """The titles of the recipes that were trained on the run's pairs as they are now; a warning names the others."""
    pairs = require(config.folder / "pairs", "minionerec pairs prepare").digest
    manifests = {
        path.parent.name: Manifest.load(path.parent) for path in (config.folder / FOLDER / "pairs").glob(f"*/{MANIFEST}")
    }
    for title, manifest in manifests.items():
        if manifest.inputs["pairs"] != pairs:
            log.warning(
                "%s/pairs/%s was trained on other pairs than the run has now, so it is not scored. Train it again.",
                FOLDER,
                title,
            )
    return sorted(title for title, manifest in manifests.items() if manifest.inputs["pairs"] == pairs)


def score_lego(config: Config, title: str) -> tuple[Manifest, bool]:
    """Score the pairs of `score.split` by a trained recipe.

    Raises:
        ArtifactError: it is not trained, or was trained on other pairs.
    """
    name = f"{FOLDER}/pairs/{title}"

    def inputs() -> dict[str, str]:
        pairs = require(config.folder / "pairs", "minionerec pairs prepare").digest
        return {name: require(config.folder / name, f"{COMMAND} --lego.task pairs", made_from={"pairs": pairs}).digest}

    recipe = score_recipe(config, f"{FOLDER}-{title}", inputs=inputs)
    return recipe.make(lambda: _score(config, title, recipe))


def _score(config: Config, title: str, recipe: Recipe) -> None:
    model, task, lego = load_lego(config, title)
    rows = pairs_of_split(PairSet.load(config.folder / "pairs"), config)
    device = distributed_state().device
    first = task.examples.rows[config.score.split].take(np.arange(len(rows)))  # of the first users
    scores = CachedScores(model.to(device), task.examples.items, device).pairs(first)
    with recipe.write() as draft:
        scale = "logit" if lego.loss == "ranking" else "any"
        write_scores(draft, rows, scores, label=f"{title} ({lego.parts}, {lego.loss})", kind="model", scale=scale)
