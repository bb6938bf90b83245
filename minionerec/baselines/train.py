"""Command `baseline`: train a sequential recommender, choose its best epoch on valid, rank valid and test with it.

Inputs: `data/` of the run, or a file of sequences (`baseline.protocol`). Outputs in `baselines/<model>/`:
`valid.parquet` and `test.parquet` (`training.ranking.frame`), `log.jsonl` (one epoch a line) and,
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
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

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
from minionerec.baselines.coded import coded_inputs, make_coded
from minionerec.baselines.lists import as_wide_as_choosing_needs, leaves_history_out, list_length, search_beams
from minionerec.baselines.trivial import WITH_VECTORS, CacheMixture, TrivialRecommender, make_trivial, needs_vectors
from minionerec.baselines.vectors import vectors_bytes, vectors_of
from minionerec.config import BASELINES, CODED_BASELINES, GENERATIVE_BASELINES, TRIVIAL_BASELINES, Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import stored_baseline
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import ConfigError
from minionerec.model.sequential import count_parameters, make, weights
from minionerec.model.sequential.batches import make_batch, partners
from minionerec.model.sequential.implementation import implementation, options_of
from minionerec.model.sequential.scorer import scorer
from minionerec.model.sequential.sequential_model import SequentialModel
from minionerec.recommend.cache.sequential import scorer_of_run
from minionerec.recommend.cache.vectors import has_vectors, vectors_digest, vectors_of_run
from minionerec.training.epochs import Course, Epochs, Learner, resume, run_epochs, seed_epoch
from minionerec.training.launch import check_precision
from minionerec.training.machine import check_vectors_memory
from minionerec.training.ranking import (
    TABLE_CUTOFFS,
    TIES,
    Scorer,
    choosing_ranks,
    frame,
    rank_split,
    ranking_metrics,
    split_metrics,
    without_histories,
)
from minionerec.training.ranking_data import RankingData, choosing_rows, from_dataset, from_sequences, longest_history

CHOOSES = "NDCG@10"  # the metric on valid that early stopping watches
_WEIGHTS = "weights.json"  # of `mixture`


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
    """Digests of the sequences or the run's data, of item vectors and a baseline that are read, and of the user's weights."""
    baseline = config.baseline
    if baseline.sequences is not None:
        inputs = {"sequences": file_hash(Path(baseline.sequences))}
    else:
        inputs = {"data": require(config.folder / "data", ITEM_STAGES["data"]).digest}
    if (vectors := _item_vectors(config)) is not None:
        inputs["vectors"] = vectors_digest(vectors)
    if baseline.sequential is not None:
        inputs[f"baselines/{baseline.sequential}"] = stored_baseline(config.folder, baseline.sequential, inputs["data"]).digest
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
    options_of(baseline, implementation(BASELINES[baseline.model]))  # before inputs that only one of them would name
    data = load_ranking_data(config)
    if baseline.weights is not None and baseline.model in TRIVIAL_BASELINES:
        raise ConfigError(f"baseline.weights is set, but {baseline.model} has no weights.")
    sections = config.section("baseline")
    sections["baseline"]["top"] = top = list_length(config, data)
    if baseline.model in GENERATIVE_BASELINES and (beams := search_beams(config, data)) > max(top, *TABLE_CUTOFFS):
        sections["baseline"]["beams"] = beams  # named only if `top` does not say it
    if leaves_history_out(config) and baseline.model not in TRIVIAL_BASELINES and baseline.weights is None:
        sections["baseline"]["chosen_by"] = without_histories(CHOOSES)
    if data.protocol.expects_ties:
        sections["baseline"] |= TIES
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
            draft.metrics.update(split_metrics(ranking, split))
            if is_main_process():
                frame(data, split, ranking).write_parquet(draft.path / f"{split}.parquet")
        draft.metrics[MILLISECONDS] = round(milliseconds, 3)
        if isinstance(recommender, CacheMixture) and is_main_process():
            recommender.mixture.weights.save(draft.path / _WEIGHTS)


def _fresh(config: Config, data: RankingData) -> SequentialModel | TrivialRecommender:
    """A model with fresh weights, or a trivial recommender that is ready to score."""
    if config.baseline.model in TRIVIAL_BASELINES:
        name = config.baseline.sequential
        scorer = None if name is None else scorer_of_run(config.folder, name, data.items)
        return make_trivial(config.baseline, data, _item_vectors(config), scorer)
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
        settings = {"max_history": config.baseline.max_history, **dataclasses.asdict(options_of(config.baseline, type(model)))}
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
    return scorer(model, config.baseline.max_history, data.protocol.side, device)


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
    learner = Learner(model, optimizer, accelerator, checkpoints)
    begun = resume(learner)
    model.to(accelerator.device)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    learner = dataclasses.replace(learner, optimizer=prepared)
    score = scorer(model, baseline.max_history, protocol.side, accelerator.device)
    chooses = choosing_rows(data, baseline.valid_examples, config.seed)

    exclude = leaves_history_out(config)
    left_out = longest_history(data) if exclude else 0

    def validate() -> float:
        with as_wide_as_choosing_needs(model, left_out):
            return ranking_metrics(*choosing_ranks(score, chooses, exclude))[CHOOSES]

    schedule = Epochs(baseline.model, CHOOSES, baseline.epochs, baseline.patience, protocol.equal_is_better, protocol.decimals)
    course = run_epochs(
        learner,
        begun,
        schedule,
        lambda epoch: train_epoch(wrapped, model, data, accelerator, prepared, config, epoch),
        validate,
    )
    return course, accelerator.num_processes


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
