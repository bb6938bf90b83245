"""Stage `report`: self-contained HTML pages of a run.

Inputs: data, sid, sft and eval/sft of the run's folder; rl, eval/rl, eval/popularity, eval/repeat and
the baselines where they are there.
Outputs, readable without a network: `report/index.html`, the run; `report/rl.html`, what RL changed, where there is RL;
`report/paper_gap.{json,md,html}`, the run beside the published tables. Equal inputs give equal bytes: every date and version
on the pages comes from the artefacts.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from minionerec.artifacts import (
    ITEM_STAGES,
    MANIFEST,
    Manifest,
    Recipe,
    read_json,
    require,
)
from minionerec.config import CUTOFFS, Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError
from minionerec.eval.compare import left_out
from minionerec.eval.lists import RankedLists
from minionerec.eval.slices import parts_of_dataset, parts_of_lists
from minionerec.report import analysis, diagnosis, paper_gap, plots, run_page
from minionerec.report.page import environment, signed
from minionerec.sid.index import SidIndex

_REQUIRED = ("data", "sid", "sft", "eval/sft")
_OPTIONAL = ("rl", "eval/popularity", "eval/repeat", "eval/rl")
_HEADLINE = 10
_FUNNELS = (1, 10, 50)
_BASELINES = tuple(f"{part}/{name}" for part in ("baselines", "eval") for name in run_page.BASELINES)  # present or not
_ORDER = ("data", "sid", "sft", "rl", *_BASELINES, "eval/popularity", "eval/repeat", "eval/sft", "eval/rl")


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


def _read_method(folder: Path, name: str) -> run_page.Method:
    path = folder / "eval" / name / "metrics.json"
    metrics = read_json(path)
    expected = {f"{family}@{k}" for family in run_page.FAMILIES for k in CUTOFFS}
    if lacking := [part for part in ("levels", "slices", "lost") if part not in metrics]:
        raise ArtifactError(f"{path}: {lacking[0]} is missing; made by another version. Run the eval stage again.")
    for part in run_page.SCALE:
        lacking = sorted(expected - metrics.get(part, {}).keys())
        if lacking:
            raise ArtifactError(f"{path}: {part}.{lacking[0]} is missing; made by another version. Run the eval stage again.")
    return run_page.Method(name, RankedLists.read(path.with_name("predictions.jsonl")), metrics)


def _tiles(
    methods: dict[str, run_page.Method], manifests: dict[str, Manifest], change: dict[str, Any] | None
) -> list[dict[str, str]]:
    final = methods.get("rl", methods["sft"])
    tiles = []
    for name in (f"HR@{_HEADLINE}", f"NDCG@{_HEADLINE}"):
        value = final.metrics["sid"][name]
        note = f"{final.label}; 95 %: {value['low']:.4f} to {value['high']:.4f}"
        tiles.append({"label": name, "value": f"{value['value']:.4f}", "note": note})
    floor = methods["popularity"].metrics["sid"][f"HR@{_HEADLINE}"]["value"] if "popularity" in methods else 0.0
    if floor:
        ratio = final.metrics["sid"][f"HR@{_HEADLINE}"]["value"] / floor
        tiles.append(
            {
                "label": "vs popularity",
                "value": f"{ratio:.2f}\N{MULTIPLICATION SIGN}",
                "note": f"HR@{_HEADLINE}; popularity has {floor:.4f}",
            }
        )
    if change and f"NDCG@{_HEADLINE}" in change:
        effect = change[f"NDCG@{_HEADLINE}"]
        verdict = "within noise" if effect["noise"] else "beyond noise"
        note = f"NDCG@{_HEADLINE}, paired: {signed(effect['low'])} to {signed(effect['high'])}, {verdict}"
        tiles.append({"label": "What RL changed", "value": signed(effect["value"]), "note": note})
    if "exact" in final.metrics:
        note = "proven to be the catalog's top"
        tiles.append({"label": "Exact lists", "value": f"{final.metrics['exact']:.1%}", "note": note})
    total = sum(manifest.seconds for manifest in manifests.values())
    tiles.append({"label": "Time", "value": f"{total / 60:.1f} min", "note": "all stages together"})
    return tiles


def _versions(manifests: dict[str, Manifest]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, version in manifest.versions.items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}


def _context(config: Config, manifests: dict[str, Manifest]) -> dict[str, Any]:
    folder = config.folder
    dataset = Dataset.load(folder / "data")
    index = SidIndex.load(folder / "sid", dataset)
    titles = dataset.catalog["title"].to_list()
    methods = {name: _read_method(folder, name) for name in run_page.LABELS if f"eval/{name}" in manifests}
    trained = [methods[name] for name in ("sft", "rl") if name in methods]
    final, shown = trained[-1], list(methods.values())
    change = {on: run_page.compared(trained[0], trained[1], on, config) if len(trained) == 2 else None for on in run_page.SCALE}
    levels = {method.name: method.metrics["levels"] for method in trained}
    logs = {stage: _read_log(folder / stage / "log.jsonl") for stage in ("sft", "rl") if stage in manifests}
    dates = sorted(manifest.created for manifest in manifests.values())
    return {
        "config": config,
        "notes": run_page.notes(manifests, [name for name in _OPTIONAL if name not in manifests]),
        "dates": (dates[0], dates[-1]),
        "dataset": run_page.dataset_figures(dataset),
        "tiles": _tiles(methods, manifests, change["sid"]),
        "rows": final.metrics["rows"],
        "users": final.metrics["users"],
        "left_out": left_out(trained[0].lists, trained[1].lists) if len(trained) == 2 else None,
        "results": run_page.result_tables(shown, "sid", change["sid"]),
        "item_results": run_page.result_tables(shown, "item", change["item"]) if run_page.items_differ(shown) else None,
        "has_floor": "popularity" in methods,
        "has_rl": "rl" in methods,
        "funnels": [(k, plots.funnel(levels, run_page.LABELS, k, len(final.lists))) for k in _FUNNELS],
        "level_tables": analysis.level_tables({method.label: method.metrics["levels"] for method in trained}),
        "drop_off": analysis.drop_off({method.label: method.metrics["levels"] for method in trained}),
        "more_tables": analysis.tables({method.label: method.metrics for method in shown}),
        "curves": {stage: plots.curves(log) for stage, log in logs.items()},
        "sid_levels": run_page.sid_levels(index),
        "sid_figures": run_page.figures(manifests["sid"].metrics),
        "collisions": index.collisions(),
        "distinct": len({tuple(row) for row in index.codes.tolist()}),
        "prefixes": run_page.prefixes(index, titles),
        "examples": run_page.examples(final, index, titles, config.report.examples),
        "final": final,
        "stages": [(name, manifests[name], run_page.figures(manifests[name].metrics)) for name in _ORDER if name in manifests],
        "labels": run_page.LABELS,
        "settings": yaml.safe_dump(_settings(manifests), sort_keys=False, allow_unicode=True),
        "versions": _versions(manifests),
    }


def _settings(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The configuration that each artefact was really made with."""
    return {name: manifests[name].config for name in _ORDER if name in manifests}


def render_rl(config: Config) -> str:
    """The page of what RL changed, as HTML text.

    Raises:
        ArtifactError, DataError: an artefact is damaged or malformed, or SFT and RL were measured on different examples.
    """
    folder = config.folder
    sft, rl = (_read_method(folder, name) for name in ("sft", "rl"))
    differences = run_page.compared(sft, rl, "sid", config)
    log = _read_log(folder / "rl" / "log.jsonl")
    dataset = Dataset.load(folder / "data")
    parts = parts_of_lists(sft.lists) | parts_of_dataset(
        sft.lists, dataset, SidIndex.load(folder / "sid", dataset), config.eval.split
    )
    levels, slices = diagnosis.level_changes(sft, rl, config), diagnosis.slice_changes(sft, rl, parts, config)
    calibrations = {method.name: method.metrics["calibration"] for method in (sft, rl) if method.metrics.get("calibration")}
    return (
        environment()
        .get_template("rl.html")
        .render(
            config=config,
            rows=len(rl.lists),
            left_out=left_out(sft.lists, rl.lists),
            reading=diagnosis.reading(sft.metrics, rl.metrics, differences, levels, slices, log),
            tables=diagnosis.tables(differences),
            change_plot=plots.changes(differences),
            levels=levels,
            slices=slices,
            reliability_plot=plots.reliability(calibrations, run_page.LABELS, rl.lists.levels, len(rl.lists))
            if calibrations
            else None,
            exposure=analysis.tables({method.label: method.metrics for method in (sft, rl)})["exposure"],
            curves=plots.curves(log),
        )
    )


def render(config: Config, manifests: dict[str, Manifest]) -> str:
    """The page as HTML text.

    Args:
        manifests: the run's artefacts by name, e.g. `eval/sft`.

    Raises:
        ArtifactError: an artefact is damaged, or SFT and RL were measured on different examples.
        DataError: a predictions file is malformed.
    """
    return environment().get_template("page.html").render(**_context(config, manifests))


def run(config: Config) -> tuple[Manifest, bool]:
    """Write the run's page into `report/`.

    Returns:
        The page's manifest, and whether it was written now (False: it was already current).

    Raises:
        ArtifactError, DataError: an input is missing, damaged or malformed.
    """
    manifests = {
        name: require(config.folder / name, ITEM_STAGES.get(name, f"minionerec {name.partition('/')[0]}")) for name in _REQUIRED
    }
    present = [name for name in (*_OPTIONAL, *_BASELINES) if (config.folder / name / MANIFEST).is_file()]
    manifests |= {name: Manifest.load(config.folder / name) for name in present}
    inputs = {name: manifest.digest for name, manifest in manifests.items()}
    recipe = Recipe("report", config.folder / "report", config.recorded, inputs, config.seed)
    if (manifest := recipe.finished()) is not None:
        return manifest, False
    with recipe.write() as draft:
        (draft.path / "index.html").write_text(render(config, manifests), encoding="utf-8", newline="\n")
        if "eval/rl" in manifests:
            (draft.path / "rl.html").write_text(render_rl(config), encoding="utf-8", newline="\n")
        paper_gap.build([config.folder], draft.path, None, config.eval.resamples, config.seed)
        draft.metrics["bytes"] = (draft.path / "index.html").stat().st_size
    return Manifest.load(recipe.folder), True
