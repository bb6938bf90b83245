"""An evaluated recommender: its lists with their metrics, and how it was made. Every page of a report is made from these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minionerec.artifacts import Manifest, content_hash
from minionerec.config import BASELINES
from minionerec.data.dataset import SplitName
from minionerec.errors import ArtifactError, DataError
from minionerec.eval.compare import compare
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics_json import Cell, Metrics

Setting = tuple[str, str, str]  # artefact, section, field
Scale = Literal["sid", "item"]
SCALES: tuple[Scale, ...] = ("sid", "item")
FAMILIES = {"HR": "Hit rate", "NDCG": "NDCG", "MRR": "MRR"}
LABELS = {name: baseline.label for name, baseline in BASELINES.items()} | {"sft": "SFT", "rl": "SFT + RL"}
_RAW_FILES: Setting = ("data", "data", "path")  # where the raw files are stored is no part of a recipe


@dataclass(frozen=True)
class Evaluated:
    """One recommender's predictions with their metrics.

    Attributes:
        name: `sft`, `rl`, a baseline's name, or `file`.
        label: its name on a page; unique within a page.
        path: the predictions file.
        lists: the predictions.
        metrics: the content of `metrics.json`; a single file lacks the metrics that need its dataset.
        counts: items, and rows of each split; None for a single file.
        split: the split that was predicted; None if unknown.
        seed: the run's seed; None for a single file.
        settings: the configuration of each artefact that the predictions come from (`data`, `sft`, ..., `eval`), by section;
            None for a single file.
        parameters: parameters of the model; None if unknown.
        ranks_whole_catalog: False if items of the history were left out. A single file is trusted to rank all items.
        notes: what a reader must know about this recommender.
    """

    name: str
    label: str
    path: Path
    lists: RankedLists
    metrics: Metrics
    counts: Mapping[str, int] | None = None
    split: SplitName | None = None
    seed: int | None = None
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
    parameters: int | None = None
    ranks_whole_catalog: bool = True
    notes: tuple[str, ...] = ()

    def metrics_on(self, scale: Scale) -> Mapping[str, Cell]:
        """The metrics on SIDs or on items, with intervals; those on items are empty if the lists name no items."""
        on_items: Mapping[str, Cell] = self.metrics.item or {}
        return self.metrics.sid if scale == "sid" else on_items

    def setting(self, setting: Setting) -> Any:
        """A value of the configuration; None if there is no such artefact, section or field."""
        artefact, section, field = setting
        return (self.settings or {}).get(artefact, {}).get(section, {}).get(field)

    def recipe(self, without: Setting | None = None) -> str | None:
        """A hash of all settings but the seed and one more: evaluated recommenders with equal recipes differ in their seed.

        None for a single file, whose settings are unknown.
        """
        if self.settings is None:
            return None
        unrelated = {_RAW_FILES, without}
        if without and without[1] == "prompts":  # the recorded words follow from the style
            unrelated.add((without[0], "prompts", "words"))
        values = {
            f"{artefact}.{section}.{field}": value
            for artefact, sections in self.settings.items()
            for section, fields in sections.items()
            for field, value in fields.items()
            if (artefact, section, field) not in unrelated
        }
        return content_hash([self.name, values])


def read_evaluated(folder: Path, label: str | None = None) -> Evaluated:
    """Read what the eval stage wrote about one recommender.

    Args:
        folder: `eval/<recommender>` of a run.
        label: None for the recommender's own, see `LABELS`.

    Raises:
        ArtifactError: the artefact is damaged, or its metrics are those of another version.
        DataError: the predictions are malformed.
    """
    manifest = Manifest.load(folder)
    options = manifest.config.get("eval", {})
    return Evaluated(
        name=folder.name,
        label=label or LABELS.get(folder.name, folder.name),
        path=folder / "predictions.jsonl",
        lists=RankedLists.read(folder / "predictions.jsonl"),
        metrics=Metrics.read(folder / "metrics.json"),
        split=options.get("split", "test"),
        seed=manifest.seed,
        ranks_whole_catalog=not options.get("exclude_history", False),
    )


def compare_evaluated(
    first: Evaluated,
    second: Evaluated,
    resamples: int,
    seed: int,
    on: Scale = "sid",
    cutoffs: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
    """How much `second` exceeds `first` on the same examples, see `eval.compare.compare`.

    Raises:
        ArtifactError: they were measured on different examples; the message names both files.
    """
    try:
        return compare(first.lists, second.lists, resamples, seed, cutoffs, on)
    except DataError as error:
        raise ArtifactError(
            f"{first.path} has {len(first.lists)} examples, {second.path} has {len(second.lists)}: {error} "
            "Evaluate both on the same split again."
        ) from None
