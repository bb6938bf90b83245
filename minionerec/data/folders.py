"""Which files of a folder a reader takes."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from minionerec.config.checks import for_display
from minionerec.errors import DataError

_NAMED = 8  # files that a line names
SPLIT_FILES = (".train.inter", ".valid.inter", ".test.inter")  # of RecBole, with given splits


def one_file(folder: Path, ending: str, category: str | None) -> Path:
    """The only file of a folder whose name has this ending and, if given, begins with the category.

    Raises:
        DataError: no such folder, no such file, or several.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. data.path is the folder that holds your files.")
    candidates = sorted(path for path in folder.iterdir() if path.name.endswith(ending) and path.is_file())
    matches = [path for path in candidates if path.name.startswith(category or "")]
    exact = [path for path in matches if path.name.removesuffix(ending) == category]
    if len(exact or matches) != 1:
        names = ", ".join(path.name for path in matches or candidates) or "none"
        begin = f" that begins with {category!r}" if category else ""
        hint = "Choose one with data.category." if len(matches) > 1 else "data/README.md shows the layout."
        raise DataError(f"{folder}: expected one *{ending}{begin}, found {names}. {hint}")
    return (exact or matches)[0]


# The interactions and the items of a folder: your own files, and public dumps under the names they are published with. After
# each name come `.csv`, `.parquet`, `.json` or `.jsonl`, the first and the last two perhaps with `.gz`.
PAIRS = (
    ("interactions", "items"),
    ("ratings", "movies"),  # MovieLens from 20M on
    ("yelp_academic_dataset_review", "yelp_academic_dataset_business"),
    ("steam_reviews", "steam_games"),
    ("goodreads_interactions*", "goodreads_books*"),
)
_ENDINGS = (".csv", ".parquet", ".json", ".jsonl", ".csv.gz", ".json.gz", ".jsonl.gz")


def raw_files(source: Literal["csv", "recbole"], folder: Path, category: str | None) -> tuple[Path, Path]:
    """The interactions file and the items file of a folder.

    Args:
        category: the beginning or end of the names, if there are several files of a kind.

    Raises:
        DataError: no such folder, or not exactly one file of each kind.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. data.path is the folder that holds your files.")
    if source == "recbole":
        patterns = [["*.inter"], ["*.item"]]
    else:
        pairs = [[[name + ending for ending in _ENDINGS] for name in pair] for pair in PAIRS]
        patterns = next((pair for pair in pairs if any(_matches(folder, names, None) for names in pair)), pairs[0])
    files = []
    for names in patterns:
        matches = _matches(folder, names, category)
        if len(matches) != 1:
            listed = ", ".join(path.name for path in matches) or "none"
            others = "" if source == "recbole" else f", {', '.join(names[2:4])}, some with .gz"
            wanted = " or ".join(names[:2]) + others
            # A category cannot choose between interactions.csv and interactions.parquet.
            several = len({path.name.split(".")[0] for path in matches}) > 1
            hint = "Choose one with data.category." if several else "data/README.md shows the layouts."
            raise DataError(f"{folder}: expected exactly one {wanted}; found {listed}. {hint}")
        files.append(matches[0])
    return files[0], files[1]


def _matches(folder: Path, patterns: list[str], category: str | None) -> list[Path]:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    paths = [path for path in paths if not path.name.endswith(SPLIT_FILES)]
    if len(paths) > 1 and category:
        stems = {path: path.name.split(".")[0] for path in paths}
        exact = [path for path in paths if stems[path] == category]
        return exact or [path for path in paths if stems[path].startswith(category) or stems[path].endswith(category)]
    return paths


def contents(source: Path, inputs: Collection[str]) -> str:
    """Which files of a folder are read, and what else lies in it, for display: a user may take it for read.

    Args:
        source: a folder or a file.
        inputs: the files that are read, relative to the folder.
    """
    if not source.is_dir():
        return f"reads {for_display(source.name)}"
    others = sorted(for_display(path.name) for path in source.iterdir() if path.is_file() and path.name not in inputs)
    note = f"reads {', '.join(map(for_display, inputs))} of {for_display(source.name)}"
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        note += f"; not read: {', '.join(others[:_NAMED])}{more}"
    return note
