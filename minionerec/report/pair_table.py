"""The table of scored pairs for the screen: each score with its interval, and with its difference from the like-rate."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from minionerec.report.page import chance, signed

COLUMNS = ("AUC", "GAUC", "NDCG@5", "LRAP", "MRR-first", "F1", "LogLoss")
_WITH_INTERVAL = ("AUC", "GAUC")


def score_table(board: Mapping[str, Any], run: str) -> Table:
    """A leaderboard, best GAUC first.

    Args:
        board: see `eval.pair_leaderboard`.
        run: what the title calls it.
    """
    split, settings = board["split"], board["settings"]
    size = f"{split['rows']:,} pairs of {split['users']:,} users, {split['likes'] / split['rows']:.1%} likes"
    title = f"{run}, {settings['split']}: {size}; 95 % intervals over users"
    table = Table(title=escape(title), title_justify="left", caption=escape(caption(board)), caption_justify="left")
    table.add_column("score", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    if parted := bool(split["parts"]["unseen"]):
        table.add_column("AUC of candidates\nseen, unseen in train", justify="right", no_wrap=True)
    if board["reference"]:
        table.add_column(f"GAUC minus\n{board['reference']}", justify="right", no_wrap=True)
        table.add_column("p", justify="right")
        table.add_column("detectable", justify="right")
    for entry in board["entries"]:
        of_run = "" if entry["run"] == board["run"] else f" ({entry['run']})"
        name = entry["label"] if entry["kind"] == "control" else f"[bold]{escape(entry['label'] + of_run)}[/]"
        cells = [_cell(entry["metrics"].get(column), column in _WITH_INTERVAL) for column in COLUMNS]
        if parted:
            cells.append("\n".join(_cell(entry["auc_of"][part], False) for part in ("seen", "unseen")))
        table.add_row(name, *cells, *(_against(entry) if board["reference"] else ()))
    return table


def _cell(value: Mapping[str, float] | None, interval: bool) -> str:
    if value is None:
        return "-"
    return f"{value['value']:.4f}" + (f"\n{value['low']:.4f} to {value['high']:.4f}" if interval else "")


def _against(entry: Mapping[str, Any]) -> tuple[str, ...]:
    change = entry.get("against_reference", {}).get("GAUC")
    if change is None:
        return ("-", "-", "-")
    least = "-" if change["detectable"] is None else f"{change['detectable']:.4f}"
    interval = f"{signed(change['value'])}\n{signed(change['low'])} to {signed(change['high'])}"
    return interval, chance(change["p"]).removeprefix("p "), least


def caption(board: Mapping[str, Any]) -> str:
    """What a reader must know to read the table, one sentence each."""
    split = board["split"]
    lines = []
    if board["rule"] == "purchases":
        lines.append("The dislikes are random items that nobody was shown: this table measures how popular the candidates are.")
    if split["rows_older_than_history"]:
        share = split["rows_older_than_history"] / split["rows"]
        lines.append(
            f"{share:.0%} of the pairs have a candidate from before the newest item of the history, which so shows what the "
            "user did afterwards (pairs.order past_only leaves them out)."
        )
    if unseen := split["parts"]["unseen"]:
        lines.append(f"{unseen:,} pairs have a candidate that no train pair has (unseen).")
    if one_label := split["users"] - split["users_judged"]:
        lines.append(f"{one_label:,} users have candidates of one label only: they count in AUC, F1 and LogLoss alone.")
    if board["settings"]["ties"] == "last":
        lines.append("Of equal scores, dislikes are ranked first (score.ties last).")
    lines += [f"Left out: {name}: {reason}." for name, reason in board["left_out"].items()]
    lines.append("detectable: the smallest true difference that a test of this size finds with 80 % power.")
    return "\n".join(lines)
