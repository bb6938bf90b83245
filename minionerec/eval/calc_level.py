"""Print and store the level tables of a predictions file."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from minionerec.artifacts import write_json
from minionerec.errors import DataError, MiniOneRecError
from minionerec.eval.levels import level_tables
from minionerec.eval.predictions import read_predictions


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("K", title=title, title_justify="left")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for k, shares in rows.items():
        table.add_row(k, *(f"{share:.4f}" for share in shares.values()))
    return table


def _run(path: Path, out: Path) -> None:
    predictions = read_predictions(path)
    tables = level_tables(predictions)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "levels.json", {"users": len(predictions), **tables})
    except OSError as error:
        raise DataError(f"{out / 'levels.json'}: cannot be written ({error}). Choose another folder with --out DIR.") from None
    console = Console()
    console.print(_table("Independent: the code of one level, alone", tables["independent"]))
    console.print(_table("Cumulative: all codes up to a level", tables["cumulative"]))
    drop_off = Table("Step", title="Drop-off of the first recommendation", title_justify="left")
    drop_off.add_column("Share", justify="right")
    for step, share in tables["drop_off"].items():
        drop_off.add_row(step, "-" if share is None else f"{share:.4f}")
    console.print(drop_off)
    console.print(f"{len(predictions)} users; written to {out / 'levels.json'}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """The command line: 0 where the tables were written, 2 where the input is wrong."""
    parser = argparse.ArgumentParser(description="Accuracy per SID level of a predictions file.")
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="predictions.jsonl of an eval stage")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for levels.json (default: the folder of FILE)")
    arguments = parser.parse_args(argv)
    try:
        _run(arguments.path, arguments.out or arguments.path.parent)
    except MiniOneRecError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0
