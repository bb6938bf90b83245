"""Why numbers differ from the paper's: the checklist, with the measured effect wherever a run at hand shows it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from minionerec.report.runs import Run

Effect = str | None


@dataclass(frozen=True)
class Cause:
    """One line of the checklist.

    Attributes:
        title: its name.
        meaning: what happens, for a newcomer.
        switch: how to reproduce it here.
        effect: measures it in the runs of one dataset, the run in question first; None where they do not show it.
        quirks: what `benchmarks/gap_causes.py` calls it: measured once, on other data, and shown where the runs show nothing.
    """

    title: str
    meaning: str
    switch: str
    effect: Callable[[Run, Sequence[Run]], Effect] | None = None
    quirks: tuple[str, ...] = ()


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _collisions(run: Run, _: Sequence[Run]) -> Effect:
    item = run.metrics.get("item")
    name = "HR@10" if "HR@10" in run.metrics["sid"] else next(iter(run.metrics["sid"]))
    if item is None:
        return None
    on_sid, cell = run.metrics["sid"][name]["value"], item[name]
    text = (
        f"{name} on SIDs {on_sid:.4f}, on items {cell['value']:.4f} expected ({_signed(cell['value'] - on_sid)}), "
        f"{cell['best']:.4f} with the luckiest order of tied items, {cell['worst']:.4f} with the unluckiest"
    )
    shared = run.metrics.get("slices", {}).get("target's SID", {}).get("shared by several items")
    return text + (f"; {shared['share']:.1%} of the targets share their SID" if shared else "")


def _slice(question: str, answer: str) -> Callable[[Run, Sequence[Run]], Effect]:
    def effect(run: Run, _: Sequence[Run]) -> Effect:
        parts = run.metrics.get("slices", {}).get(question)
        if parts is None:
            return None
        if answer not in parts:
            return f"no target is of this kind ({question}: {answer})"
        part = parts[answer]
        name = next(metric for metric in part if metric.startswith("HR@"))
        whole, rest = run.metrics["sid"][name]["value"], run.metrics["rows"] - part["rows"]
        text = f"{part['share']:.1%} of the targets, {name} {part[name]['value']:.4f} on them"
        if rest:
            others = (whole * run.metrics["rows"] - part[name]["value"] * part["rows"]) / rest
            text += f"; without them {name} is {others:.4f} instead of {whole:.4f}"
        return text

    return effect


def _search(run: Run, _: Sequence[Run]) -> Effect:
    search = run.metrics.get("search")
    if not search:
        return None
    shown = [width for width in ("1", "5", "10", "20", "50") if width in search["widths"]]
    rates = ", ".join(f"{width} beams {search['widths'][width]['HR@10']:.4f}" for width in shown)
    beams = search["num_beams"]
    missed = search["widths"][str(beams)]["missed"]
    return (
        f"HR@10 on {search['rows']} examples: {rates}, whole catalogue in sight {search['exact']['HR@10']:.4f}; with this "
        f"run's {beams} beams the search itself loses a target that belongs into the list in {missed:.2%} of the examples"
    )


def _sizes(run: Run, others: Sequence[Run]) -> Effect:
    rows = sorted(
        (other.parameters, other.metrics["sid"]["HR@10"]["value"])
        for other in (run, *others)
        if other.parameters and other.recommender == run.recommender and "HR@10" in other.metrics["sid"]
    )
    if len({parameters for parameters, _ in rows}) < 2:
        return None
    return "HR@10 by parameters: " + ", ".join(f"{parameters / 1e6:,.1f} M {value:.4f}" for parameters, value in rows)


def _seeds(run: Run, others: Sequence[Run]) -> Effect:
    values = [
        other.metrics["sid"]["HR@10"]["value"]
        for other in (run, *others)
        if other.recipe == run.recipe and run.seed is not None
    ]
    if len(values) < 2:
        return None
    return f"HR@10 over {len(values)} seeds: {min(values):.4f} to {max(values):.4f}"


CAUSES = (
    Cause(
        "prompt mismatch",
        "the model is asked in evaluation with another sentence than in training",
        "--prompts.style alpaca --prompts.wording reference --prompts.eval_style reference",
        quirks=("prompt mismatch",),
    ),
    Cause(
        "wrong reward targets",
        "the reward looks its target up by the history's text, so that of equal histories the last one wins",
        "--rl.targets last_row",
        quirks=("wrong reward targets",),
    ),
    Cause(
        "validation labels in training rewards",
        "the look-up table of rewards is overwritten with validation targets",
        "--rl.targets reference",
        quirks=("validation labels in training rewards",),
    ),
    Cause(
        "answer in the prompt",
        "alignment prompts end with their own answer",
        "--sft.answer_in_prompt true",
        quirks=("answer in the prompt",),
    ),
    Cause(
        "generation defaults",
        "the checkpoint's generation_config turns beam search into sampling with temperature and repetition penalty",
        "python benchmarks/generation_defaults.py RUN --config NAME; the decoder itself never reads it",
        quirks=("generation defaults",),
    ),
    Cause("collisions", "several items share a SID and count as one hit", "--sid.collisions keep", _collisions),
    Cause(
        "repeats",
        "the target already stands in the history, often a duplicate of the same purchase",
        "none needed: a property of the data",
        _slice("target in the history", "repeat"),
    ),
    Cause(
        "same-day ties",
        "target and last history item have one timestamp, so which comes next is arbitrary",
        "none needed: a property of the data",
        _slice("target's time", "same as the item before"),
    ),
    Cause(
        "beam width and search error",
        "a narrow beam drops the target's prefix early; a wide one is slow",
        "--eval.num_beams N; --eval.oracle_examples N measures it",
        _search,
        quirks=("20 beams", "10 beams"),
    ),
    Cause("model size", "a smaller model than the paper's", "--model.path, --model.hidden_size, --model.layers", _sizes),
    Cause("seeds", "one run's luck", "--seed N with a folder of its own (--out)", _seeds),
)


@cache
def _elsewhere() -> dict[str, Any]:
    """`gap_causes.json`: what `benchmarks/gap_causes.py` stored, and `dataset`, the name of what it ran on."""
    text = (resources.files("minionerec.report") / "gap_causes.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _measured(quirks: Sequence[str]) -> Effect:
    """What the benchmark found of some of its quirks, in words."""
    stored = _elsewhere()
    known = [name for name in quirks if name in stored["quirks"]]
    if not known:
        return None
    parts = []
    for name in known:
        cells = [(metric, stored["quirks"][name][metric]) for metric in ("HR@10", "NDCG@10")]
        figures = ", ".join(
            f"{metric} {_signed(cell['value'])} [{_signed(cell['low'])}, {_signed(cell['high'])}]"
            + (" (noise)" if cell["noise"] else "")
            for metric, cell in cells
        )
        parts.append(figures if len(known) == 1 else f"{name}: {figures}")
    return f"not in these runs; on {stored['dataset']}, {stored['seeds']} seeds: {'; '.join(parts)}"


def checklist(run: Run, others: Sequence[Run]) -> list[dict[str, Any]]:
    """Each cause with its measured effect; `effect` is None where neither a run at hand nor our benchmark shows it."""
    return [
        {
            "title": cause.title,
            "meaning": cause.meaning,
            "switch": cause.switch,
            "effect": (cause.effect(run, others) if cause.effect else None) or _measured(cause.quirks),
        }
        for cause in CAUSES
    ]
