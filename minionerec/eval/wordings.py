"""The same model asked in several wordings: metrics of each, and their mean (LC-Rec reports such means)."""

from pathlib import Path

from minionerec.artifacts import write_json
from minionerec.config import Config
from minionerec.eval.compare import values_by_seed
from minionerec.eval.lists import RankedLists, cutoffs_within
from minionerec.eval.metrics import interval_cells
from minionerec.statistics.intervals import across_seeds, mean_over_seeds

WORDINGS = "wordings.json"


def file_of_wording(wording: int) -> str:
    """The file with the lists of a wording; 0 is the first, whose lists all tables show."""
    return "predictions.jsonl" if wording == 0 else f"predictions-{wording + 1}.jsonl"


def measure_wordings(folder: Path, wordings: int, config: Config) -> dict[str, float]:
    """Write `wordings.json` from the lists of all wordings.

    It holds, per metric on items, the mean of the wordings for each example, averaged over examples with a 95 % interval over
    users (`value`, `low`, `high`), and `wordings`: what `across_seeds` says of the means of the single wordings.

    Returns:
        the means by name, for the manifest.

    Raises:
        DataError: a file is malformed.
    """
    lists = [RankedLists.read(folder / file_of_wording(wording)) for wording in range(wordings)]
    cutoffs = cutoffs_within(min(one.span["longest"] for one in lists))
    by_wording = values_by_seed(lists, lists[0], cutoffs)
    cells = interval_cells(mean_over_seeds(by_wording), config.eval.resamples, config.seed, lists[0].units())
    metrics = {
        name: {
            **cell,
            "single": [float(values[name].mean()) for values in by_wording],
            "wordings": across_seeds([float(values[name].mean()) for values in by_wording], (0, 1)),
        }
        for name, cell in cells.items()
    }
    write_json(folder / WORDINGS, {"wordings": wordings, "metrics": metrics})
    return {f"{name}, mean over wordings": cell["value"] for name, cell in cells.items()}
