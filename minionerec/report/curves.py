"""The training curves of one stage as a self-contained page, written next to its model."""

import json
from pathlib import Path

from minionerec.report import plots
from minionerec.report.page import environment


def write_curves(log: Path, page: Path, title: str) -> None:
    """Write the page of a stage's `log.jsonl`.

    Args:
        page: the HTML file to write.
    """
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    text = environment().get_template("curves.html").render(title=title, curves=plots.curves(entries))
    page.write_text(text, encoding="utf-8", newline="\n")
