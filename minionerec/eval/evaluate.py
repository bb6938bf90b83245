"""Stage `eval`: rank the catalog for every user of a split, and measure.

Inputs: `data/`, `sid/` and `<stage>/model/` of the run; of `<stage>-mixture`, the model with its cache, `mixture/<stage>/` too.
Outputs: `eval/<name>/predictions.jsonl`, `metrics.json` and, if `eval.oracle_examples` is above 0, `oracle.jsonl`. The first
two are also written for the floors, which train nothing (popularity, repeat, skip, text, mixture; `listed.floors`), and for the
run's baselines, under their names. Baselines that write SIDs (tiger, lazy, liger) are asked as language models are, see
`eval/coded.py`; of others the stored lists are read. The predictions of a model are stored shard by shard: an interrupted
evaluation resumes where it stopped, and any number of processes writes the same files. Titles that a model writes
(`eval.grounding`) are kept in `titles/<stage>/<split>/titles.json`.

Deviations from the paper: the prompt is the one that the model was trained with; the search masks what the catalog lacks
instead of adding -1e6; the checkpoint's generation settings play no part; metrics are on SIDs and on items, with intervals.

Command: `minionerec eval --config ml-100k`, or `accelerate launch eval/predict.py --config NAME`.
"""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from minionerec.artifacts import ITEM_STAGES, MANIFEST, MILLISECONDS, UNSEEDED, Manifest, Recipe, read_json, require, write_json
from minionerec.config import FLOORS, GENERATIVE_BASELINES, NAMING, PLAIN_FLOORS, RECOMMENDING, Config, EvalConfig
from minionerec.data.dataset import Dataset, SplitName
from minionerec.data.interactions import interaction_counts
from minionerec.data.vectors import baseline_digest
from minionerec.distributed import distributed_state, is_main_process
from minionerec.errors import DataError
from minionerec.eval import grounding, search_error
from minionerec.eval.check_predictions import check_belongs
from minionerec.eval.coded import CodedDecoder, inputs_of
from minionerec.eval.decode import Clock, SplitDecoder, TitleDecoder, decode_split
from minionerec.eval.exposure import exposure
from minionerec.eval.listed import (
    LEGO,
    floor_vectors_digest,
    floors,
    is_stored,
    listed_predictions,
    stored_artefact,
    stored_lists,
)
from minionerec.eval.lists import RankedLists, cutoffs_within, headline_cutoff
from minionerec.eval.metrics import measure
from minionerec.eval.metrics_json import Metrics
from minionerec.eval.predictions import as_predictions, write_predictions
from minionerec.eval.slices import parts_of_dataset, parts_of_lists, slice_tables
from minionerec.eval.wordings import file_of_wording, measure_wordings
from minionerec.model import checkpoint, pretrained
from minionerec.prompts.builder import Prompts
from minionerec.prompts.record import check_prompts, prompts_section
from minionerec.prompts.titles import check_evaluated, check_whole, check_written
from minionerec.recommend.assistant import BaselineAssistant
from minionerec.recommend.loading import has_mixture
from minionerec.recommend.mixing import load_cache, require_mixture
from minionerec.recommend.recommender import Recommender
from minionerec.recommend.titles import TitleRecommender
from minionerec.recommend.variants import ASSISTED, GROUNDED, MIXED, STAGES, TITLED, VARIANTS, WEIGHTS, stage_of
from minionerec.sid.index import SidIndex, collision_warning
from minionerec.training.early import check_assistant, check_title_assistant
from minionerec.training.fit_assistant import assistant_inputs, chosen_weight
from minionerec.training.holdout import check_valid_unseen

log = logging.getLogger(__name__)


def evaluate(config: Config, name: str) -> tuple[Manifest, bool]:
    """Predict a split and measure the predictions, unless the finished artefact is current.

    Args:
        name: of the recommender: `sft`, `rl`, these with `-mixture` or `-d3`, `sft-titles`, it with `-trie` or `-d3`, one of
            `FLOORS`, a baseline of the run, or `lego-` and the title of a content recommender.

    Returns:
        the manifest, and whether it was made now.

    Raises:
        ArtifactError: an input is missing or was made from other data, or a process did not finish its share.
        ConfigError: the model was trained with other prompts or on the split itself, or a mixture is decoded over the
            vocabulary.
        DataError: the split is empty.
        LockedError: another process evaluates this recommender.
    """
    if name in ASSISTED:
        check_assistant(config)
    if name in GROUNDED:
        check_title_assistant(config)
    recipe = _recipe(config, name)
    return recipe.make(lambda: _predict(config, name, recipe), collective=True)


def _predict(config: Config, name: str, recipe: Recipe) -> None:
    dataset = Dataset.load(config.folder / "data")
    if not len(dataset.split(config.eval.split)):
        raise DataError(
            f"{config.folder / 'data'}: the {config.eval.split} split is empty, so there is nothing to evaluate. Make it with "
            "data.split, data.parts or data.test_from."
        )
    index = SidIndex.load(config.folder / "sid", dataset)
    stage, milliseconds, wordings = stage_of(name), None, 1
    decoded = stage is not None or name in GENERATIVE_BASELINES
    with recipe.write(resumable=decoded, collective=True) as draft:
        if name in GENERATIVE_BASELINES:
            milliseconds = decode_split(CodedDecoder.load(config, name, dataset, index), draft.path)
        elif name in GROUNDED:
            weight, milliseconds = _ground(config, GROUNDED[name], dataset, index, draft.path)
            draft.metrics.update(weight)
        elif name in TITLED:
            milliseconds = _search_titles(config, name, dataset, index, recipe, draft.path)
        elif stage is not None:
            prompts, asking = _asking(config, name, stage, dataset, index, recipe)
            milliseconds = decode_split(SplitDecoder(asking(0, config.eval)), draft.path)
            wordings = prompts.wordings if config.eval.wordings == "mean" else 1
            for wording in range(1, wordings):
                untraced = dataclasses.replace(config.eval, oracle_examples=0)
                decode_split(SplitDecoder(asking(wording, untraced)), draft.path, file_of_wording(wording))
        elif is_main_process():
            write_predictions(draft.path / "predictions.jsonl", listed_predictions(name, config, dataset, index, draft.path))
        if is_main_process():
            if config.eval.split == "valid" and name in _fitted_to_valid(config):
                log.warning("%s: its weights were fitted to the valid split, so its figures on it flatter.", name)
            if decoded and (warning := collision_warning(index.collisions(), len(index.codes))) is not None:
                log.warning("%s", warning)
            metrics = measure_predictions(draft.path, dataset, index, config)
            metrics.write(draft.path / "metrics.json")
            draft.metrics.update({metric: cell["value"] for metric, cell in metrics.headline.items()})
            if wordings > 1:
                draft.metrics.update(measure_wordings(draft.path, wordings, config))
            if milliseconds is not None:
                draft.metrics[MILLISECONDS] = round(milliseconds, 3)


def _asking(
    config: Config, name: str, stage: str, dataset: Dataset, index: SidIndex, recipe: Recipe
) -> tuple[Prompts, Callable[[int, EvalConfig], Recommender]]:
    """The prompts of a trained model, and a function of a wording's number that returns the recommender that asks with it."""
    model, tokenizer = checkpoint.load(config.folder / stage / "model", config.eval.dtype)
    prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))
    model = model.to(distributed_state().device)

    def asking(wording: int, options: EvalConfig) -> Recommender:
        recommender = Recommender(model, dataclasses.replace(prompts, asked=wording), config=options)
        if name in MIXED:
            recommender.mix(load_cache(config.folder, stage, dataset, recipe.inputs)[0])
        if name in ASSISTED:
            recommender.assist(_assistant(config, dataset, recipe))
        return recommender

    return prompts, asking


def check_titles(config: Config) -> None:
    """Refuse titles that the run's SFT model cannot write or be searched for, before hours are spent on other recommenders.

    The model's weights are not read.

    Raises:
        ArtifactError: data, semantic IDs or the model are missing or damaged, or do not belong together.
        ConfigError: `eval.title_tokens` leaves no room for a prompt, or for no title.
        DataError: an item has no title, or one that leaves no room for a prompt.
    """
    _inputs(config, "sft")  # refuses what is missing or damaged
    dataset = Dataset.load(config.folder / "data")
    model, tokenizer = checkpoint.load(config.folder / "sft" / "model", weights=False)
    index = SidIndex.load(config.folder / "sid", dataset)
    prompts = Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))
    check_evaluated(prompts, config.resolved_prompts, config.eval)


def _search_titles(config: Config, name: str, dataset: Dataset, index: SidIndex, recipe: Recipe, folder: Path) -> float | None:
    """Search the titles of the catalog, asked for in the first wording. Returns the milliseconds that a list took."""
    model, prompts = _writer(config, "sft", dataset, index)
    check_whole(prompts, config.eval.title_tokens)
    # The exact scores of all titles would take a forward pass of every token of every title, for each example.
    options = dataclasses.replace(config.eval, oracle_examples=0)
    recommender = TitleRecommender(model.to(distributed_state().device), prompts, options)
    if name in ASSISTED:
        recommender.assist(_assistant(config, dataset, recipe))
    return decode_split(TitleDecoder(recommender), folder)


def _writer(config: Config, stage: str, dataset: Dataset, index: SidIndex) -> tuple[PreTrainedModel, Prompts]:
    """A trained model that is asked for titles, and its prompts."""
    if config.eval.wordings == "mean" and is_main_process():
        log.warning("Titles are written in the first wording; eval.wordings mean is for lists of SIDs.")
    model, tokenizer = checkpoint.load(config.folder / stage / "model", config.eval.dtype)
    return model, Prompts(dataset, index, tokenizer, config.resolved_prompts, checkpoint.context_of(model))


def _ground(
    config: Config, stage: str, dataset: Dataset, index: SidIndex, folder: Path
) -> tuple[dict[str, float], float | None]:
    """Let the model write titles, in the first wording, and write the items whose titles are nearest to them.

    Returns:
        the weight of the distances, as a figure, if they are weighed; and the milliseconds that a list took, its title and its
        ranking, None if unknown.
    """
    model, prompts = _writer(config, stage, dataset, index)
    tokenizer = prompts.tokenizer
    check_written(prompts, config.eval.title_tokens)
    device = distributed_state().device
    written = _written(config, stage, model.to(device), prompts, config.eval.split)
    valid = None
    if config.eval.chooses_title_weight:
        valid = _written(config, stage, model, prompts, "valid", config.eval.title_examples)
    if not is_main_process():
        return {}, None
    embedder = (model, tokenizer)
    if config.eval.grounding == "base":
        embedder = checkpoint.load(str(config.model.path), config.eval.dtype)
    embedder[0].to(device).eval()
    if (blank := written.texts.count("")) > len(written.texts) / 2:
        log.warning(
            "%s of %s written titles are empty, and tell nothing of the next item. Train the model longer, or see %s.",
            f"{blank:,}",
            f"{len(written.texts):,}",
            grounding.TITLES,
        )
    clock = Clock()
    grounded, weight = grounding.rank_split(written, valid, prompts, embedder, folder, config, clock)
    ranking = clock.milliseconds
    ids = dataset.catalog["item_id"].to_list()
    places = (grounded.best, grounded.ties)
    predictions = as_predictions(dataset.split(config.eval.split), grounded.rankings, index, ids, places=places)
    write_predictions(folder / "predictions.jsonl", predictions)
    took = None if ranking is None or written.milliseconds is None else written.milliseconds + ranking
    return {} if config.eval.title_assistant is None else {"weight": weight}, took


def _written(
    config: Config, stage: str, model: PreTrainedModel, prompts: Prompts, split: SplitName, most: int | None = None
) -> grounding.Written:
    """The titles that a model writes for rows of a split. Every process calls it.

    They are an artefact of their own, `titles/<stage>/<split>`: what ranks items by them plays no part, and writing is slow. An
    earlier one of other rows, `titles/<stage>/valid-N`, stays: it takes some kilobytes, and serves again once the model and
    `eval.title_examples` are what they were.

    Args:
        most: how many rows, evenly spaced; None for all.
    """
    examples = grounding.rows_of(prompts.dataset, split, most)
    whole = len(examples) == len(prompts.dataset.split(split))
    artefact = f"titles/{stage}/{split}" + ("" if whole else f"-{len(examples)}")
    fields = ("title_beams", "title_tokens", "dtype")

    def inputs() -> dict[str, str]:
        items = {name: require(config.folder / name, command).digest for name, command in ITEM_STAGES.items()}
        return {**items, stage: require(config.folder / stage, f"minionerec {stage}", made_from=items).digest}

    recipe = Recipe(
        stage=artefact,
        folder=config.folder / artefact,
        config={
            "eval": {field: getattr(config.eval, field) for field in fields},
            "prompts": prompts_section(config.resolved_prompts, [NAMING]),
        },
        inputs=inputs(),
        seed=UNSEEDED,
        replace=config.replace,
        wait=config.wait,
        reread=inputs,
    )

    def write() -> None:
        with recipe.write(resumable=True, collective=True) as draft:
            clock = Clock()
            texts = grounding.write_split(model, prompts, draft.path, config.eval, split, examples, clock)
            if is_main_process():
                write_json(draft.path / grounding.TITLES, texts)
                if clock.milliseconds is not None:
                    draft.metrics[MILLISECONDS] = round(clock.milliseconds, 3)

    manifest, _ = recipe.make(write, collective=True)
    texts = read_json(recipe.folder / grounding.TITLES)
    return grounding.Written(split, examples, texts, manifest.metrics.get(MILLISECONDS))


def _assistant(config: Config, dataset: Dataset, recipe: Recipe) -> BaselineAssistant:
    """The assistant, with the weight that the recipe names."""
    helped = recipe.config["d3"]
    return BaselineAssistant.load(config.folder, helped["assistant"], dataset, config.eval.split, helped["weight"])


def _fitted_to_valid(config: Config) -> tuple[str, ...]:
    """The recommenders that have weights from the valid split."""
    assisted = ASSISTED if config.eval.assistant_weight is None else ()
    return (*MIXED, "mixture", *assisted, *(GROUNDED if config.eval.chooses_title_weight else ()))


def _recipe(config: Config, name: str) -> Recipe:
    """What the evaluation of a recommender is made from.

    Raises:
        ArtifactError: an input is missing or was made from other data.
        ConfigError: the model was trained with other prompts, or on the split itself.
    """
    inputs = _inputs(config, name)
    sections = config.section("eval")
    if name in ASSISTED:
        weight, _ = chosen_weight(config, WEIGHTS[name], inputs)
        sections["d3"] = {"assistant": config.eval.assistant, "weight": weight}
    if (stage := stage_of(name)) is not None:
        model = Manifest.load(config.folder / stage)
        check_prompts(model.config, config.resolved_prompts, str(config.folder / stage))
        if config.eval.split == "valid":
            check_valid_unseen(model, "eval.split is valid")
        by_title = name in GROUNDED or name in TITLED
        sections["prompts"] = prompts_section(config.resolved_prompts, [NAMING if by_title else RECOMMENDING])
        if by_title:
            fields = ["length_penalty", "title_tokens"] if name in TITLED else ["grounding", "title_beams", "title_tokens"]
            if name in GROUNDED and config.eval.title_assistant is not None:
                fields += ["title_assistant", "title_weight", "title_examples"]
            sections["titles"] = {field: getattr(config.eval, field) for field in fields}
        elif config.eval.wordings == "mean":
            sections["wordings"] = {"asked": "mean"}
        if config.resolved_prompts.eval_style == "released":
            log.warning(
                "prompts.eval_style is released: %s is asked with a sentence that it was not trained with, as in the released "
                "code's evaluation. The figures measure that mistake.",
                name,
            )
    return Recipe(
        stage=f"eval/{name}",
        folder=config.folder / "eval" / name,
        config=sections,
        inputs=inputs,
        seed=config.seed,
        key_fields={**sections, **config.key_fields("eval")},
        replace=config.replace,
        wait=config.wait,
        reread=partial(_inputs, config, name),
    )


def _inputs(config: Config, name: str) -> dict[str, str]:
    """Digests of data, SIDs, and the model or the baseline of this name, or the item vectors of a floor that reads them."""
    inputs = {stage: require(config.folder / stage, command).digest for stage, command in ITEM_STAGES.items()}
    if (stage := stage_of(name)) is not None:
        inputs[stage] = require(config.folder / stage, f"minionerec {stage}", made_from=inputs).digest
        if name in MIXED:
            mixture, baseline = require_mixture(config.folder, stage, inputs)
            inputs[WEIGHTS[name]] = mixture.digest
            if baseline is not None:
                inputs[baseline.stage] = baseline.digest
        if name in GROUNDED and config.eval.grounding == "base":
            path = str(config.model.path)
            inputs["embeddings"] = pretrained.identity(path) or path
        if name in GROUNDED and (weighing := config.eval.title_assistant) not in (None, "popularity"):
            inputs[f"baselines/{weighing}"] = baseline_digest(config.folder, str(weighing), inputs["data"])
        if name in ASSISTED:
            inputs |= assistant_inputs(config, inputs["data"])
            weights = WEIGHTS[name]
            if (digest := chosen_weight(config, weights, inputs)[1]) is not None:
                inputs[weights] = digest
    elif is_stored(config, name):
        made_from = {"data": inputs["data"], **(inputs_of(config, name) if name in GENERATIVE_BASELINES else {})}
        inputs[stored_artefact(name)] = stored_lists(config.folder, name, made_from, config).digest
    elif (digest := floor_vectors_digest(name, config)) is not None:
        inputs["vectors"] = digest
    return inputs


def measure_predictions(folder: Path, dataset: Dataset, index: SidIndex, config: Config) -> Metrics:
    """Measure a folder's `predictions.jsonl`, and what the beam search missed if there is an `oracle.jsonl`.

    Raises:
        DataError: the predictions are malformed, or do not belong to this split and catalog.
        ArtifactError: a line of `oracle.jsonl` is malformed.
    """
    path, exact_scores = folder / "predictions.jsonl", folder / "oracle.jsonl"
    lists = RankedLists.read(path)
    check_belongs(lists, dataset, index, config.eval.split, str(path))
    parts = parts_of_lists(lists) | parts_of_dataset(lists, dataset, index, config.eval.split)
    sliced = (headline_cutoff(cutoffs_within(lists.span["longest"])),)
    traces = search_error.read_traces(exact_scores) if exact_scores.is_file() else []
    return dataclasses.replace(
        measure(lists, resamples=config.eval.resamples, seed=config.seed),
        slices=slice_tables(lists, parts, sliced, config.eval.resamples, config.seed),
        exposure=exposure(lists, interaction_counts(dataset)),
        search=search_error.summary(traces, config.eval.num_beams),
    )


def evaluable(config: Config) -> list[str]:
    """The recommenders of a run: floors that it computes itself, baselines, content recommenders, and trained models alone,
    mixed and assisted.
    """
    folder = config.folder
    baselines = sorted(path.parent.name for path in (folder / "baselines").glob(f"*/{MANIFEST}"))
    trained = [stage for stage in STAGES if (folder / stage / MANIFEST).is_file()]
    wanted = MIXED if config.mixture.components else {}
    mixed = [name for name, stage in wanted.items() if stage in trained and has_mixture(folder, stage)]
    grounded = [name for name, stage in GROUNDED.items() if config.eval.grounding != "none" and stage in trained]
    titled = [name for name in TITLED if config.eval.title_trie and "sft" in trained]
    if (grounded or titled) and not config.sft.writes_sids:
        trained = [stage for stage in trained if stage != "sft"]  # it writes titles and no SIDs
    helped = [name for name, stage in ASSISTED.items() if name in titled or (name not in TITLED and stage in trained)]
    helped = helped if config.eval.assistant is not None else []
    titled = [name for name in titled if name not in ASSISTED]
    content = sorted(f"{LEGO}{path.parent.name}" for path in (folder / "lego" / "lists").glob(f"*/{MANIFEST}"))
    listed = [*(name for name in baselines if name not in PLAIN_FLOORS), *content]
    return [*floors(config), *listed, *trained, *mixed, *helped, *grounded, *titled]


def evaluated(folder: Path) -> list[str]:
    """The recommenders with a finished evaluation in a run's folder: floors first, then baselines, trained models last."""
    order = {name: number for number, name in enumerate((*FLOORS, "", *STAGES, *VARIANTS))}
    names = [path.parent.name for path in (folder / "eval").glob(f"*/{MANIFEST}")]
    return sorted(names, key=lambda name: (order.get(name, order[""]), name))
