"""Shared by all pages: the template environment with its number formats, the style and the plotting script."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from minionerec.statistics.intervals import SIGNIFICANCE

PLOTLY_FILE = "plotly.min.js"  # next to the pages of a folder
# What `statistics.intervals.beyond_noise` asks for, in words.
BEYOND_NOISE = f"its interval excludes zero and p of a paired permutation test is below {SIGNIFICANCE}"


def duration(seconds: float) -> str:
    """Seconds for display."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def figure(value: Any) -> str:
    """A value for display: thousands separated, fractions with four digits, the values of a mapping one after the other.

    None, as a share of nothing, is a dash.
    """
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {figure(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def signed(value: float) -> str:
    """A difference with its sign, four decimals."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """A relative difference with its sign, in percent with one decimal."""
    return f"{100 * value:+.1f} %".replace("-", "\N{MINUS SIGN}")


def metric(value: float | None) -> str:
    """A metric, four decimals; a dash if there is none."""
    return "\N{EN DASH}" if value is None else f"{value:.4f}"


def chance(p: float) -> str:
    """A p-value with its name: three decimals, and never 0."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def cell(value: object) -> str:
    """Text for a cell of a markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Write pages that share plotly's script, and the script next to them, into an existing folder.

    The folder can be moved as a whole and read without a network. The script is as large as fifty pages, so it is not in each.

    Args:
        pages: file name to HTML text.
    """
    for name, text in {PLOTLY_FILE: get_plotlyjs(), **pages}.items():
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(folder / name)


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of this package; HTML is escaped, markdown is not."""
    here = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"duration": duration, "figure": figure, "signed": signed, "percent": percent}
    templates.filters |= {"metric": metric, "chance": chance, "cell": cell}
    templates.globals |= {
        "beyond_noise": BEYOND_NOISE,
        "style": Markup((here / "style.css").read_text(encoding="utf-8")),
        "plotly_file": PLOTLY_FILE,
        "plotly": lambda: Markup(get_plotlyjs()),
    }
    return templates
