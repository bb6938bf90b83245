"""Stage `report`: one self-contained HTML page of a run.

Inputs: data, sid, sft and eval/sft of the run's folder; rl, eval/rl, eval/popularity and eval/repeat where they are there.
Output: `report/index.html`, readable without a network. Equal inputs give equal bytes: every date and version on the page
comes from the artefacts.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from minionerec.artifacts import (
    MANIFEST,
    Manifest,
    content_hash,
    is_current,
    read_json,
    require,
    write_artifact,
)
from minionerec.config import CUTOFFS, Config
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError
from minionerec.eval.predictions import read_predictions
from minionerec.report import content, plots
from minionerec.sid.index import SidIndex

_REQUIRED = ("data", "sid", "sft", "eval/sft")
_OPTIONAL = ("rl", "eval/popularity", "eval/repeat", "eval/rl")
_HEADLINE = 10
_FUNNELS = (1, 10, 50)
_ORDER = ("data", "sid", "sft", "rl", "eval/popularity", "eval/repeat", "eval/sft", "eval/rl")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


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


def _read_method(folder: Path, name: str) -> content.Method:
    path = folder / "eval" / name / "metrics.json"
    metrics = read_json(path)
    expected = {f"{family}@{k}" for family in ("HR", "NDCG") for k in CUTOFFS}
    for part in content.SCALE:
        lacking = sorted(expected - metrics.get(part, {}).keys())
        if lacking:
            raise ArtifactError(f"{path}: {part}.{lacking[0]} is missing; made by another version. Run the eval stage again.")
    return content.Method(name, read_predictions(path.with_name("predictions.jsonl")), metrics)


def _tiles(
    methods: dict[str, content.Method], manifests: dict[str, Manifest], change: dict[str, Any] | None
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
    if change:
        effect = change[f"NDCG@{_HEADLINE}"]
        verdict = "beyond noise" if content.beyond_noise(effect) else "within noise"
        note = f"NDCG@{_HEADLINE}, paired: {_signed(effect.low)} to {_signed(effect.high)}, {verdict}"
        tiles.append({"label": "What RL changed", "value": _signed(effect.value), "note": note})
    if "exact" in final.metrics:
        note = "proven to be the catalogue's top"
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
    methods = {name: _read_method(folder, name) for name in content.LABELS if f"eval/{name}" in manifests}
    trained = [methods[name] for name in ("sft", "rl") if name in methods]
    final, shown = trained[-1], list(methods.values())
    change = {
        on: content.differences(trained[0], trained[1], on, config) if len(trained) == 2 else None for on in content.SCALE
    }
    levels = {method.name: method.metrics["levels"] for method in trained}
    logs = {stage: _read_log(folder / stage / "log.jsonl") for stage in ("sft", "rl") if stage in manifests}
    dates = sorted(manifest.created for manifest in manifests.values())
    return {
        "config": config,
        "notes": content.notes(manifests, [name for name in _OPTIONAL if name not in manifests]),
        "dates": (dates[0], dates[-1]),
        "dataset": content.dataset_figures(dataset),
        "tiles": _tiles(methods, manifests, change["sid"]),
        "users": len(final.predictions),
        "results": content.result_tables(shown, "sid", change["sid"]),
        "item_results": content.result_tables(shown, "item", change["item"]) if content.items_differ(shown) else None,
        "has_floor": "popularity" in methods,
        "funnels": [(k, plots.funnel(levels, content.LABELS, k)) for k in _FUNNELS],
        "level_tables": content.level_rows(trained),
        "drop_off": content.drop_off(trained),
        "curves": {stage: plots.curves(log) for stage, log in logs.items()},
        "sid_levels": content.sid_levels(index),
        "sid_figures": content.figures(manifests["sid"].metrics),
        "collisions": index.collisions(),
        "distinct": len({tuple(row) for row in index.codes.tolist()}),
        "prefixes": content.prefixes(index, titles),
        "examples": content.examples(final, index, titles, config.report.examples),
        "final": final,
        "stages": [(name, manifests[name], content.figures(manifests[name].metrics)) for name in _ORDER if name in manifests],
        "labels": content.LABELS,
        "settings": yaml.safe_dump(_settings(manifests), sort_keys=False, allow_unicode=True),
        "versions": _versions(manifests),
    }


def _settings(manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The configuration that each stage was really made with, by section."""
    return {section: fields for manifest in manifests.values() for section, fields in manifest.config.items()}


def render(config: Config, manifests: dict[str, Manifest]) -> str:
    """The page as HTML text.

    Args:
        manifests: the run's artefacts by name, e.g. `eval/sft`.

    Raises:
        ArtifactError: an artefact is damaged, or SFT and RL were measured on different users.
        DataError: a predictions file is malformed.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "figure": _figure, "signed": _signed}
    style = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("page.html").render(
        **_context(config, manifests), style=style, plotly=Markup(get_plotlyjs())
    )


def run(config: Config) -> tuple[Manifest, bool]:
    """Write the run's page into `report/`.

    Returns:
        The page's manifest, and whether it was written now (False: it was already current).

    Raises:
        ArtifactError, DataError: an input is missing, damaged or malformed.
    """
    manifests = {
        name: require(config.folder / name, f"minionerec {name.partition('/')[0]} --config FILE") for name in _REQUIRED
    }
    present = [name for name in _OPTIONAL if (config.folder / name / MANIFEST).is_file()]
    manifests |= {name: Manifest.load(config.folder / name) for name in present}
    inputs = {name: manifest.digest for name, manifest in manifests.items()}
    settings = dataclasses.asdict(config)
    key = content_hash({"config": settings, "inputs": inputs})
    folder = config.folder / "report"
    if is_current(folder, key):
        return Manifest.load(folder), False
    with write_artifact(folder, stage="report", key=key, config=settings, inputs=inputs, seed=config.seed) as draft:
        (draft.path / "index.html").write_text(render(config, manifests), encoding="utf-8", newline="\n")
        draft.metrics["bytes"] = (draft.path / "index.html").stat().st_size
    return Manifest.load(folder), True
