"""Stage `report`: HTML pages of a run in one folder, readable without a network.

Inputs: data, sid, sft and eval/sft of the run's folder; if they exist, rl, eval/rl, the floors (eval/popularity and so on), the
baselines and content recommenders.
Outputs: `report/index.html`, the run; `report/rl.html`, what RL changed, if there is RL; `report/comparison.{json,html}`, all
recommenders in one table; `report/paper_gap.{json,md,html}`, the run next to the published tables; `report/plotly.min.js`, the
script that draws the plots of these pages. Equal inputs give equal bytes: every date and version on the pages is an artefact's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from minionerec.artifacts import ITEM_STAGES, MANIFEST, Manifest, Recipe, changed_input, require, write_json
from minionerec.config import BASELINES, FLOORS, PLAIN_FLOORS, Config, run_file
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError
from minionerec.eval.compare import left_out
from minionerec.eval.listed import LEGO, stored_artefact, stored_command
from minionerec.eval.lists import headline_cutoff
from minionerec.eval.slices import parts_of_dataset, parts_of_lists, parts_of_training
from minionerec.recommend.variants import VARIANTS, WEIGHTS
from minionerec.report import analysis, comparison, comparison_pages, diagnosis, paper_gap, plots, run_page
from minionerec.report.evaluated import (
    LABELS,
    SCALES,
    Evaluated,
    Scale,
    compare_evaluated,
    page_order,
    read_evaluated,
    same_history,
    why_outdated,
)
from minionerec.report.page import chance, environment, signed, write_pages
from minionerec.report.slices import SlicedMetric, sliced_metric
from minionerec.sid.index import SidIndex
from minionerec.statistics.intervals import binomial_interval

_REQUIRED = ("data", "sid", "sft", "eval/sft")
_OPTIONAL = ("rl", *(f"eval/{name}" for name in FLOORS), "eval/rl")
_TRAINED_ON_REQUEST = [name for name in BASELINES if f"eval/{name}" not in _OPTIONAL]
_BASELINES = (
    *(f"baselines/{name}" for name in BASELINES if name not in PLAIN_FLOORS),
    *(f"eval/{name}" for name in _TRAINED_ON_REQUEST),
)
_VARIANTS = [artefact for name in VARIANTS for artefact in (WEIGHTS.get(name), f"eval/{name}") if artefact is not None]


@dataclass(frozen=True)
class RunResults:
    """What the pages of a run are made from.

    Attributes:
        config: the run's configuration.
        manifests: its artefacts by name, e.g. `eval/sft`.
        outdated: evaluations and mixtures that are not shown, by name, each with the reason.
        dataset, index: the run's items and their semantic IDs.
        evaluated: its recommenders by name, in the order of the page.
        logs: the training log per stage.
        changes: RL minus SFT per metric, on SIDs and on items; empty without RL.
        history: whether items of the history may stand in the lists, `kept` or `left out`, the same for all recommenders.
        sliced: NDCG on items per part of the split, and how much each recommender's exceeds the final model's.
        over_popularity: the final model's hit rate on items minus popularity's, at the headline's cut-off; None if popularity
            is not evaluated, or a list is shorter.
    """

    config: Config
    manifests: dict[str, Manifest]
    outdated: dict[str, str]
    dataset: Dataset
    index: SidIndex
    evaluated: dict[str, Evaluated]
    logs: dict[str, list[dict[str, Any]]]
    changes: dict[Scale, dict[str, dict[str, Any]]]
    history: str
    sliced: SlicedMetric
    over_popularity: dict[str, Any] | None

    @classmethod
    def load(cls, config: Config, manifests: dict[str, Manifest], outdated: dict[str, str]) -> "RunResults":
        """Read the artefacts of a run's folder.

        Raises:
            ArtifactError: an artefact is damaged, recommenders were measured on different examples, or only some of them keep
                the history.
            DataError: a predictions file is malformed.
        """
        folder = config.folder
        dataset = Dataset.load(folder / "data")
        shown = sorted((name.removeprefix("eval/") for name in manifests if name.startswith("eval/")), key=page_order)
        evaluated = {name: read_evaluated(folder / "eval" / name) for name in shown}
        recommenders, resamples = list(evaluated.values()), config.eval.resamples
        history = same_history(recommenders)
        parts = parts_of_training(recommenders[0].lists, dataset)
        changes: dict[Scale, dict[str, dict[str, Any]]] = {}
        if "rl" in evaluated:
            sft, rl = evaluated["sft"], evaluated["rl"]
            changes = {on: compare_evaluated(sft, rl, resamples, config.seed, on) for on in SCALES}
        over_popularity = None
        if "popularity" in evaluated:
            floor, final = evaluated["popularity"], evaluated["rl" if "rl" in evaluated else "sft"]
            k = headline_cutoff(final.metrics.cutoffs)
            if k in floor.metrics.cutoffs:
                difference = compare_evaluated(floor, final, resamples, config.seed, "item", (k,))
                over_popularity = difference[f"HR@{k}"]
        return cls(
            config,
            manifests,
            outdated,
            dataset,
            SidIndex.load(folder / "sid", dataset),
            evaluated,
            {stage: _read_log(folder / stage / "log.jsonl") for stage in ("sft", "rl") if stage in manifests},
            changes,
            history,
            sliced_metric(recommenders, parts, resamples=resamples, seed=config.seed),
            over_popularity,
        )

    @property
    def trained(self) -> list[Evaluated]:
        """The SFT model and, if there is one, the RL model."""
        return [self.evaluated[name] for name in ("sft", "rl") if name in self.evaluated]

    @property
    def can_be_compared(self) -> bool:
        """Whether some evaluation is of the data, SIDs and model that the run has now, by this version."""
        reasons = (_outdated(self.config, name, one) for name, one in self.manifests.items() if name.startswith("eval/"))
        return any(reason is None for reason in reasons)

    @property
    def missing(self) -> list[str]:
        """The artefacts that most runs have and this one has not."""
        return [name for name in _OPTIONAL if name not in self.manifests and name not in self.outdated]

    @property
    def left_out(self) -> str | None:
        """What a comparison of SFT and RL must say about cut-offs that it lacks; None if it lacks none, or without RL."""
        return left_out(*(recommender.lists for recommender in self.trained)) if len(self.trained) == 2 else None


@dataclass(frozen=True)
class Tile:
    """A headline figure: its name, its value, and a line in small print."""

    label: str
    value: str
    note: str


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ArtifactError(f"{path}, line {number}: not valid JSON ({error}). Run the stage again.") from None
        if not isinstance(entry, dict) or "step" not in entry:
            raise ArtifactError(f"{path}, line {number}: expected an object with a step. Run the stage again.")
        entries.append(entry)
    return entries


def _tiles(results: RunResults) -> list[Tile]:
    final = results.trained[-1]
    k = headline_cutoff(final.metrics.cutoffs)
    tiles = []
    for name in (f"HR@{k}", f"NDCG@{k}"):
        metric = final.metrics.headline[name]
        note = f"{final.label}, on items; 95\N{NO-BREAK SPACE}%: {metric['low']:.4f} to {metric['high']:.4f}"
        tiles.append(Tile(name, f"{metric['value']:.4f}", note))
    if results.over_popularity:
        floor = results.evaluated["popularity"].metrics.headline[f"HR@{k}"]["value"]
        note = f"HR@{k} on items, paired: {_verdict(results.over_popularity)}; popularity has {floor:.4f}"
        tiles.append(Tile("Over popularity", signed(results.over_popularity["value"]), note))
    if change := results.changes.get("item", {}).get(f"NDCG@{k}"):
        tiles.append(_rl_tile(results.manifests["rl"].metrics, f"NDCG@{k}", change))
    if final.metrics.exact is not None:
        share = binomial_interval(final.metrics.exact, final.metrics.users)
        note = f"proven to be the catalog's top; 95\N{NO-BREAK SPACE}%: {share.low:.1%} to {share.high:.1%}"
        proven = f"{round(share.value * final.metrics.rows):,} of {final.metrics.rows:,}"
        tiles.append(Tile("Exact lists", proven, note))
    total = sum(manifest.seconds for manifest in results.manifests.values())
    tiles.append(Tile("Time", f"{total / 60:.1f} min", "all stages together"))
    return tiles


def _rl_tile(training: Mapping[str, Any], metric: str, change: Mapping[str, Any]) -> Tile:
    """What RL changed in a metric on items, and after how many steps."""
    steps = training.get("steps")
    count = f"{steps:,} step{'s' * (steps != 1)}" if steps else "its steps"
    if training.get("best_step") == 0:
        return Tile("What RL changed", "nothing", f"the SFT model was the best on valid, better than any of {count}")
    return Tile("What RL changed", signed(change["value"]), f"{metric} on items after {count}, paired: {_verdict(change)}")


def _verdict(change: Mapping[str, Any]) -> str:
    """The interval of a paired difference, its p-value, and whether it is noise."""
    verdict = "within noise" if change["noise"] else "beyond noise"
    return f"{signed(change['low'])} to {signed(change['high'])}, {chance(change['p'])}, {verdict}"


def _versions(manifests: dict[str, Manifest]) -> dict[str, str]:
    versions: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, version in manifest.versions.items():
            versions.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(numbers)) for package, numbers in versions.items()}


def _settings(stages: Mapping[str, Manifest]) -> dict[str, Any]:
    """The configuration that each artefact was really made with."""
    return {name: manifest.config for name, manifest in stages.items()}


def _content(folder: Path) -> list[str]:
    """The artefacts of content recommenders that a run may have, recipes first, then cells of parts that were named."""
    names = {path.parent.name for path in (folder / "eval").glob(f"{LEGO}*/{MANIFEST}")}
    names |= {f"{LEGO}{path.parent.name}" for path in (folder / "lego" / "lists").glob(f"*/{MANIFEST}")}
    return [artefact for name in sorted(names, key=page_order) for artefact in (stored_artefact(name), f"eval/{name}")]


def _in_order(folder: Path, manifests: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """The artefacts in the order in which a page tells about them."""
    floors = (f"eval/{name}" for name in FLOORS)
    order = ("data", "sid", "sft", "rl", *_BASELINES, *_content(folder), *floors, "eval/sft", "eval/rl", *_VARIANTS)
    return {name: manifests[name] for name in order if name in manifests}


def render_run_page(results: RunResults) -> str:
    """The page of the run, as HTML text."""
    manifests, index = results.manifests, results.index
    stages = _in_order(results.config.folder, manifests)
    titles = results.dataset.catalog["title"].to_list()
    evaluated, final = list(results.evaluated.values()), results.trained[-1]
    levels = {recommender.name: recommender.metrics.levels for recommender in results.trained}
    levels_by_label = {LABELS[name]: tables for name, tables in levels.items()}
    dates = sorted(manifest.created for manifest in manifests.values())
    return (
        environment()
        .get_template("page.html")
        .render(
            config=results.config,
            name=run_file.name_of(results.config),
            notes=run_page.notes(manifests, results.missing, results.outdated, index),
            dates=(dates[0], dates[-1]),
            dataset=run_page.dataset_figures(results.dataset),
            tiles=_tiles(results),
            rows=final.metrics.rows,
            users=final.metrics.users,
            left_out=results.left_out,
            history=results.history,
            sliced=results.sliced,
            list_lengths=run_page.list_lengths(evaluated),
            results=run_page.result_tables(evaluated, "item", results.changes.get("item")),
            sid_results=run_page.result_tables(evaluated, "sid", results.changes.get("sid"))
            if run_page.items_differ(evaluated)
            else None,
            has_floor="popularity" in results.evaluated,
            has_rl="rl" in results.evaluated,
            has_comparison=results.can_be_compared,
            funnels=plots.funnels(levels, LABELS, _funnel_cutoffs(results.trained), final.metrics.users),
            level_tables=analysis.level_tables(levels_by_label),
            drop_off=analysis.drop_off(levels_by_label, {model.label: model.metrics.rows for model in results.trained}),
            more_tables=analysis.metric_tables({recommender.label: recommender.metrics for recommender in evaluated}),
            curves={stage: plots.curves(log) for stage, log in results.logs.items()},
            codebook_use=run_page.codebook_use(index),
            sid_figures=run_page.figures(manifests["sid"].metrics),
            collisions=index.collisions(),
            distinct=len({tuple(codes) for codes in index.codes.tolist()}),
            item_groups=run_page.item_groups(index, titles),
            examples=run_page.examples(final, index, titles, results.config.report.examples),
            share_in_top=final.metrics.sid["HR@5"]["value"] if "HR@5" in final.metrics.sid else None,
            final=final,
            stages=[(name, manifest, run_page.figures(manifest.metrics)) for name, manifest in stages.items()],
            settings=yaml.safe_dump(_settings(stages), sort_keys=False, allow_unicode=True),
            versions=_versions(manifests),
        )
    )


def _funnel_cutoffs(trained: Sequence[Evaluated]) -> list[int]:
    """Three cut-offs at most that all models reach: the smallest, the headline's and the largest."""
    cutoffs = sorted(set.intersection(*(set(model.metrics.cutoffs) for model in trained)))
    return sorted({cutoffs[0], headline_cutoff(cutoffs), cutoffs[-1]})


def render_rl_page(results: RunResults) -> str:
    """The page of what RL changed, as HTML text; only for a run with RL.

    Raises:
        DataError: SFT and RL were measured on different examples.
    """
    config, changes, log = results.config, results.changes["sid"], results.logs.get("rl", [])
    sft, rl = results.trained
    parts = parts_of_lists(sft.lists) | parts_of_dataset(sft.lists, results.dataset, results.index, config.eval.split)
    levels, slices = diagnosis.level_changes(sft, rl, config), diagnosis.slice_changes(sft, rl, parts, config)
    calibrations = {model.name: model.metrics.calibration for model in (sft, rl) if model.metrics.calibration}
    tables = analysis.metric_tables({recommender.label: recommender.metrics for recommender in (sft, rl)})
    return (
        environment()
        .get_template("rl.html")
        .render(
            config=config,
            name=run_file.name_of(config),
            rows=len(rl.lists),
            history=results.history,
            left_out=results.left_out,
            reading=diagnosis.reading(sft.metrics, rl.metrics, changes, levels, slices, log),
            cutoff_tables=diagnosis.cutoff_tables(changes),
            change_plot=plots.changes(changes),
            level_table=diagnosis.level_table(levels),
            slice_table=diagnosis.slice_table(slices),
            reliability_plot=plots.reliability(calibrations, LABELS, rl.lists.levels, len(rl.lists)) if calibrations else None,
            exposure=tables.exposure,
            exposed=tables.exposed,
            curves=plots.curves(log),
        )
    )


def write_report(config: Config) -> tuple[Manifest, bool]:
    """Write the run's pages into `report/`, unless they are current.

    Returns:
        The manifest of the pages, and whether they were written now.

    Raises:
        ArtifactError, DataError: an input is missing, damaged or malformed.
        ConfigError: the run's model writes texts and no SIDs, so what the page shows does not exist.
    """
    manifests, outdated = _manifests(config)
    recipe = Recipe(
        "report",
        config.folder / "report",
        {**config.recorded, "name": run_file.name_of(config)},
        _inputs(manifests, outdated),
        config.seed,
        replace=config.replace,
        wait=config.wait,
        reread=lambda: _inputs(*_manifests(config)),
    )
    return recipe.make(lambda: _write_pages(config, manifests, outdated, recipe))


def _manifests(config: Config) -> tuple[dict[str, Manifest], dict[str, str]]:
    """The manifests of what the pages show, by stage; and what they leave out because its input is another by now.

    Left out are mixtures and evaluations, which are cheap to make again, but for the evaluation that a page cannot be without:
    of that one, and of a model, the page says that its input has changed.
    """
    if not config.sft.writes_sids and not (config.folder / "eval/sft" / MANIFEST).is_file():
        raise ConfigError(
            f"{config.folder}: sft.tasks has no task whose answer is a SID, so there is no eval/sft, which the pages need. "
            f"Its lists stand in a table: minionerec baseline table {config.folder} --html table.html"
        )
    others = (*_OPTIONAL, *_VARIANTS, *_BASELINES, *_content(config.folder))
    names = [*_REQUIRED, *(name for name in others if (config.folder / name / MANIFEST).is_file())]
    manifests = {name: require(config.folder / name, _command(name)) for name in names}
    outdated = {}
    for name in names:
        cheap = name.startswith(("eval/", "mixture/", "d3/")) and name not in _REQUIRED
        if cheap and (reason := _outdated(config, name, manifests[name])) is not None:
            outdated[name] = reason
            del manifests[name]
    return manifests, outdated


def _command(name: str) -> str:
    """The command that makes an artefact."""
    stage, _, part = name.partition("/")
    if stage in ("baselines", "lego"):
        return stored_command(part if stage == "baselines" else LEGO + part.removeprefix("lists/"))
    return ITEM_STAGES.get(name, f"minionerec {stage}")


def _outdated(config: Config, name: str, manifest: Manifest) -> str | None:
    """Why an evaluation or a mixture does not fit what the run has, in words; None if it does."""
    if name.startswith("eval/"):
        return why_outdated(config.folder, name.removeprefix("eval/"), manifest)
    changed = changed_input(config.folder, manifest)
    return None if changed is None else f"made from another {changed} than the run has"


def _inputs(manifests: Mapping[str, Manifest], outdated: Mapping[str, str]) -> dict[str, str]:
    digests = {name: manifest.digest for name, manifest in manifests.items()}
    return {**digests, **outdated}


def _write_pages(config: Config, manifests: dict[str, Manifest], outdated: dict[str, str], recipe: Recipe) -> None:
    results = RunResults.load(config, manifests, outdated)
    with recipe.write() as draft:
        pages = {"index.html": render_run_page(results)}
        if "rl" in results.evaluated:
            pages["rl.html"] = render_rl_page(results)
        if results.can_be_compared:
            compared = comparison.compare_runs([config.folder], resamples=config.eval.resamples, seed=config.seed)
            pages["comparison.html"] = comparison_pages.render_page(compared, run_file.name_of(config), linked=True)
            write_json(draft.path / "comparison.json", compared.as_dict())
        write_pages(draft.path, pages)
        paper_gap.write_gap_report([config.folder], draft.path, resamples=config.eval.resamples, seed=config.seed)
        draft.metrics["bytes"] = (draft.path / "index.html").stat().st_size
