"""Why numbers differ from the paper's: the checklist, with the measured effect wherever a run at hand shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """

    title: str
    meaning: str
    switch: str
    effect: Callable[[Run, Sequence[Run]], Effect] | None


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
    widest = max(search["widths"], key=int)
    missed = search["widths"][widest]["missed"]
    return (
        f"HR@10 on {search['rows']} examples: {rates}, whole catalogue in sight {search['exact']['HR@10']:.4f}; with {widest} "
        f"beams the search itself loses {missed:.2%} of the targets that belong into the list"
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


_NONE = "none in this version: the pipeline cannot do it wrong"
CAUSES = (
    Cause(
        "prompt mismatch",
        "the model is asked in evaluation with another sentence than in training",
        _NONE + " (one prompt builder serves training, rollouts and evaluation)",
        None,
    ),
    Cause(
        "wrong reward targets",
        "the reward looks its target up by the history's text, so that of equal histories the last one wins",
        _NONE + " (the target travels with its row)",
        None,
    ),
    Cause(
        "validation labels in training rewards",
        "the look-up table of rewards is overwritten with validation targets",
        _NONE + " (there is no such table)",
        None,
    ),
    Cause("answer in the prompt", "alignment prompts end with their own answer", _NONE + " (a test forbids it)", None),
    Cause(
        "generation defaults",
        "the checkpoint's generation_config turns beam search into sampling with temperature and repetition penalty",
        _NONE + " (the decoder never reads it)",
        None,
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
    ),
    Cause("model size", "a smaller model than the paper's", "--model.path, --model.hidden_size, --model.layers", _sizes),
    Cause("seeds", "one run's luck", "--seed N with a folder of its own (--out)", _seeds),
)


def checklist(run: Run, others: Sequence[Run]) -> list[dict[str, Any]]:
    """Each cause with its measured effect; `effect` is None where no run at hand shows it."""
    return [
        {
            "title": cause.title,
            "meaning": cause.meaning,
            "switch": cause.switch,
            "effect": cause.effect(run, others) if cause.effect else None,
        }
        for cause in CAUSES
    ]
