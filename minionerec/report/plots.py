"""The plots of the pages: plotly figures as HTML fragments; the script of a page draws them once its layout is known."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.io.json import to_json_plotly

from minionerec.statistics.intervals import binomial_interval

COLOURS = {"sft": "#3d5afe", "rl": "#00897b"}
_INK, _MUTED, _GRID = "#1c2333", "#667085", "#e8ebf1"
_LINES = ("#3d5afe", "#e4572e", "#00897b", "#a23fb5", "#c98a00", "#5b6b7f")
_REPLICATION = "#c98a00"
_FONTS = "Inter, Segoe UI, system-ui, Roboto, Helvetica Neue, Arial, sans-serif"
_SMOOTH_FROM = 40
_FOREST = (3, 5, 10)  # cut-offs of the published tables
_FAMILIES = {"HR": "hit rate", "NDCG": "NDCG"}
# A logged series is drawn in the first panel whose pattern matches its name; a series that matches none is not drawn. Per
# panel the pattern and the label of its vertical axis.
_PANELS = {
    "Loss": (r"^(eval_)?loss$", "loss (SFT: nats per token)"),
    "Reward": (r"^(eval_)?reward$|^rewards/.*/mean$", "mean reward of a rollout"),
    "KL divergence from the SFT model": (r"^(eval_)?kl$", "mean KL per token (nats)"),
    "Entropy of the policy": (r"^entropy(/level_\d+)?$", "mean entropy per token (nats)"),
    "Different first codes in a group": (r"^first_codes$", "codes"),
    "Beam groups with a reward signal": (r"^groups_with_signal(_at_first)?$", "share of groups"),
    "Accuracy": (r"(HR|NDCG|MRR)@?\d*$", "HR, NDCG or MRR (0 to 1)"),
    "Learning rate": (r"^learning_rate$", "learning rate"),
    "Gradient norm": (r"^grad_norm$", "L2 norm"),
}


def new_figure(*traces: Any) -> go.Figure:
    """A figure without plotly's own template, which is large and replaced in every page."""
    return go.Figure(traces, layout={"template": "none"})


def fragment(
    figure: go.Figure,
    *,
    y: str = "",
    x: str = "",
    legend: bool = True,
    zero: bool = True,
    height: int = 280,
    upper: float | None = None,
) -> Markup:
    """A figure in the style of the pages, as an element that their script draws.

    Args:
        y, x: what the axes show, with units.
        zero: the vertical axis begins at 0.
        height: in pixels.
        upper: the end of the vertical axis, so that plots that stand together share a scale; None fits it to the figure.
    """
    axis: dict[str, Any] = {"gridcolor": _GRID, "linecolor": "#cdd3de", "zeroline": False, "automargin": True}
    drawn = figure.to_dict()
    # A plain dictionary: plotly's own way of changing a layout takes longer than all else in a page.
    layout: dict[str, Any] = {
        **{name: value for name, value in drawn["layout"].items() if name != "template"},
        "margin": {"l": 8, "r": 8, "t": 34 if legend else 10, "b": 8},
        "font": {"family": _FONTS, "size": 12, "color": _MUTED},
        "hoverlabel": {"font": {"color": _INK}, "bgcolor": "white", "bordercolor": "#cdd3de"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "xaxis": {"title": {"text": x, "standoff": 6}, **axis, "showgrid": False},
        "yaxis": {"title": {"text": y, "standoff": 6}, **axis, "rangemode": "tozero" if zero else "normal"},
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "x unified",
        "showlegend": legend,
    }
    if upper is not None:
        layout["yaxis"]["range"] = [0, 1.03 * upper]
    label = " by ".join(filter(None, (y, x))) or "hierarchy"
    if series := ", ".join(dict.fromkeys(trace.name for trace in figure.data if trace.name)):
        label += f": {series}"
    # Inside a script element only "<" could end the data.
    data = to_json_plotly({"data": drawn["data"], "layout": layout}).replace("<", "\\u003c")
    script = f'<script type="application/json">{data}</script>'
    return Markup(f'<div class="plot" role="img" aria-label="Plot of {escape(label)}">{script}</div>')


def _binomial_bars(shares: Iterable[float], rows: int) -> dict[str, Any]:
    return _error_bars([binomial_interval(share, rows)._asdict() for share in shares])


def funnels(
    levels: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], cutoffs: Sequence[int], users: int
) -> list[tuple[int, Markup]]:
    """Per cut-off k the share of examples with any of the top k SIDs right up to each level, all plots on one scale.

    Bars per stage, with binomial 95 % intervals.

    Args:
        levels: level tables per stage.
        labels: name per stage, for display.
        cutoffs: those that every stage has.
        users: the independent units of the intervals.
    """
    shares = [share for k in cutoffs for tables in levels.values() for share in tables["cumulative"][str(k)].values()]
    upper = max(binomial_interval(share, users).high for share in shares)
    return [(k, _funnel(levels, labels, k, users, upper)) for k in cutoffs]


def _funnel(levels: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], k: int, users: int, upper: float) -> Markup:
    figure = new_figure()
    for stage, tables in levels.items():
        shares = tables["cumulative"][str(k)]
        figure.add_bar(
            name=labels[stage],
            x=[f"{count} code{'s' * (count > 1)}" for count in range(1, len(shares) + 1)],
            y=list(shares.values()),
            error_y={**_binomial_bars(shares.values(), users), "width": 3, "color": "#667085"},
            marker={"color": COLOURS[stage], "cornerradius": 4},
            hovertemplate="%{y:.4f}",
        )
    figure.update_layout(barmode="group", bargap=0.28, bargroupgap=0.08)
    return fragment(figure, y="share of examples", x="codes right from the first on", upper=upper)


def _series(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = dict.fromkeys(name for entry in log for name in entry if name not in ("step", "epoch"))
    series = {}
    for name in names:
        points = [(entry["step"], entry[name]) for entry in log if type(entry.get(name)) in (int, float)]
        if points:
            steps, values = np.array(points, dtype=float).T
            series[name] = (steps, values)
    return series


def _smooth(values: np.ndarray) -> np.ndarray:
    # A centred moving average over about a twentieth of the run; at the ends over the values that exist.
    window = np.ones(max(3, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _add_curve(figure: go.Figure, name: str, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    line = {"color": colour, "width": 2}
    if len(values) < _SMOOTH_FROM:
        mode = "lines+markers" if len(values) <= 20 else "lines"
        figure.add_scatter(x=steps.tolist(), y=values.tolist(), name=name, mode=mode, line=line, marker={"size": 6})
        return
    faint = {"color": colour, "width": 1}
    figure.add_scatter(
        x=steps.tolist(), y=values.tolist(), name=name, line=faint, opacity=0.25, showlegend=False, hoverinfo="skip"
    )
    figure.add_scatter(x=steps.tolist(), y=_smooth(values).tolist(), name=name, mode="lines", line=line)


def curves(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """Panels (title, plot) of the series in a training log; long series are smoothed, with the raw values behind.

    Args:
        log: entries with `step` and logged numbers.
    """
    panels: dict[str, list[str]] = {}
    series = _series(log)
    for name in series:
        title = next((title for title, (pattern, _) in _PANELS.items() if re.search(pattern, name)), None)
        if title:
            panels.setdefault(title, []).append(name)
    plots = []
    for title in [title for title in _PANELS if title in panels]:
        figure = new_figure()
        for line, name in enumerate(panels[title]):
            _add_curve(figure, name, *series[name], _LINES[line % len(_LINES)])
        several, unit = len(panels[title]) > 1, _PANELS[title][1]
        plots.append((title, fragment(figure, x="optimiser step", y=unit, legend=several, zero=title != "Loss")))
    return plots


def _error_bars(cells: Collection[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [cell["high"] - cell["value"] for cell in cells],
        "arrayminus": [cell["value"] - cell["low"] for cell in cells],
        "thickness": 1.4,
        "width": 5,
    }


def forests(targets: Mapping[str, Mapping[str, float]], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Markup]:
    """Published values next to the runs' values with intervals: a plot per metric family, both on one scale.

    Args:
        targets: label of a published row to its value per metric; two at most.
        runs: label of a run to its metrics.
    """
    names = [f"{family}@{k}" for family in _FAMILIES for k in _FOREST]
    values = [row[name] for row in targets.values() for name in names]
    values += [metrics[name]["high"] for metrics in runs.values() for name in names if name in metrics]
    return {family: _forest(family, targets, runs, max(values, default=0.0) or 1.0) for family in _FAMILIES}


def _forest(
    family: str, targets: Mapping[str, Mapping[str, float]], runs: Mapping[str, Mapping[str, Any]], upper: float
) -> Markup:
    figure = new_figure()
    names = [f"{family}@{k}" for k in _FOREST]
    for (label, row), symbol, colour in zip(targets.items(), ("diamond", "x"), ("#e4572e", _REPLICATION), strict=False):
        marker = {"symbol": symbol, "size": 10, "color": colour}
        values = [row[name] for name in names]
        figure.add_scatter(x=names, y=values, name=label, mode="markers", marker=marker, hovertemplate="%{y:.4f}")
    for number, (label, metrics) in enumerate(runs.items()):
        cells = {name: metrics[name] for name in names if name in metrics}
        figure.add_scatter(
            x=list(cells),
            y=[cell["value"] for cell in cells.values()],
            name=label,
            mode="markers",
            marker={"size": 8, "color": _LINES[number % len(_LINES)]},
            error_y=_error_bars(cells.values()),
            hovertemplate="%{y:.4f}",
        )
    figure.update_layout(scattermode="group", scattergap=0.4)
    axis, height = f"{_FAMILIES[family]} (0 to 1)", 330 + 20 * len(runs)
    return fragment(figure, y=axis, x="metric at its cut-off", height=height, upper=upper)


class LevelCurve(NamedTuple):
    """Cumulative accuracy per level of one recommender, measured on so many users."""

    label: str
    shares: Mapping[str, float]
    users: int


def level_lines(replication: LevelCurve | None, runs: Sequence[LevelCurve]) -> Markup:
    """Cumulative accuracy per level at one cut-off, with binomial 95 % intervals.

    Args:
        replication: None if nothing is published.
        runs: one curve per run.
    """
    figure = new_figure()
    if replication:
        line = {"color": _REPLICATION, "dash": "dot", "width": 2}
        _level_line(figure, replication, line)
    for number, curve in enumerate(runs):
        _level_line(figure, curve, {"color": _LINES[number % len(_LINES)], "width": 2})
    return fragment(figure, y="share of examples", x="codes right", height=330 + 20 * len(runs))


def _level_line(figure: go.Figure, curve: LevelCurve, line: dict[str, Any]) -> None:
    figure.add_scatter(
        x=list(curve.shares),
        y=list(curve.shares.values()),
        name=curve.label,
        mode="lines+markers",
        line=line,
        error_y=_binomial_bars(curve.shares.values(), curve.users),
        hovertemplate="%{y:.4f}",
    )


def reliability(tables: Mapping[str, Sequence[Mapping[str, Any]]], labels: Mapping[str, str], level: int, rows: int) -> Markup:
    """Confidence and accuracy of a level in ten groups of equal size per stage; the diagonal is perfect calibration.

    Intervals of the accuracy are binomial, 95 %.

    Args:
        tables: the `calibration` table per stage.
        labels: name per stage, for display.
        level: 1-based.
        rows: number of examples.
    """
    figure = new_figure()
    groups = {stage: table[level - 1]["groups"] for stage, table in tables.items()}
    upper = max(max(group["confidence"], group["accuracy"]) for stage_groups in groups.values() for group in stage_groups)
    figure.add_scatter(
        x=[0, upper], y=[0, upper], name="perfect", mode="lines", line={"color": "#9aa3b2", "dash": "dot", "width": 1}
    )
    for stage, stage_groups in groups.items():
        accuracies = [group["accuracy"] for group in stage_groups]
        figure.add_scatter(
            x=[group["confidence"] for group in stage_groups],
            y=accuracies,
            name=labels[stage],
            mode="lines+markers",
            line={"color": COLOURS[stage], "width": 2},
            error_y=_binomial_bars(accuracies, max(1, rows // len(stage_groups))),
            hovertemplate="%{y:.4f}",
        )
    return fragment(figure, y="accuracy, share of examples", x="confidence, mean probability")


def changes(differences: Mapping[str, Mapping[str, float]]) -> Markup:
    """RL minus SFT per cut-off, HR and NDCG, with paired 95 % intervals."""
    figure = new_figure()
    for family, colour in (("HR", _LINES[0]), ("NDCG", _LINES[2])):
        cells = {name.partition("@")[2]: cell for name, cell in differences.items() if name.startswith(f"{family}@")}
        figure.add_scatter(
            x=[f"@{k}" for k in cells],
            y=[cell["value"] for cell in cells.values()],
            name=family,
            mode="markers",
            marker={"size": 9, "color": colour},
            error_y=_error_bars(cells.values()),
            hovertemplate="%{y:+.4f}",
        )
    figure.add_hline(y=0, line={"color": "#9aa3b2", "width": 1})
    figure.update_layout(scattermode="group", scattergap=0.6)
    return fragment(figure, y="change, share of examples", x="cut-off", zero=False, height=320)


def counts(by_series: Mapping[str, Mapping[int, int]], x: str, y: str) -> Markup:
    """Bars of how often each whole number occurs, one series next to the other; a series is shown as shares of its sum."""
    figure = new_figure()
    for number, (name, count_of) in enumerate(by_series.items()):
        total = sum(count_of.values())
        shares = [count / total for count in count_of.values()]
        figure.add_bar(
            name=name, x=list(count_of), y=shares, marker={"color": _LINES[number % len(_LINES)]}, hovertemplate="%{y:.3f}"
        )
    figure.update_layout(barmode="group")
    return fragment(figure, x=x, y=y)


def curve(points: Sequence[tuple[float, float]], x: str, y: str) -> Markup:
    """One line through points (x, y)."""
    figure = new_figure()
    horizontal, vertical = ([point[axis] for point in points] for axis in (0, 1))
    figure.add_scatter(x=horizontal, y=vertical, mode="lines", line={"color": _LINES[0], "width": 2}, hovertemplate="%{y:.3f}")
    return fragment(figure, x=x, y=y, legend=False)
