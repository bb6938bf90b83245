"""Why numbers differ from the paper's: the checklist, with the measured effect wherever a run at hand shows it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from minionerec.report.page import signed
from minionerec.report.published import published
from minionerec.report.runs import Run, Setting, seeds

Effect = str | None
Differences = Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]  # labels of two runs, to the second minus the first

_METRICS = ("HR@10", "NDCG@10")
_WIDEST = 50  # beams of the paper


@dataclass(frozen=True)
class Switch:
    """The setting that makes a mistake.

    Attributes:
        at: where a run's manifests hold it.
        on: whether a value of it makes the mistake.
    """

    at: Setting
    on: Callable[[Any], bool]

    def described(self, run: Run) -> str:
        """The setting of a run for readers."""
        return f"{self.at[1]}.{self.at[2]} {str(run.setting(self.at)).lower()}"


@dataclass(frozen=True)
class Cause:
    """One line of the checklist.

    Attributes:
        title: its name.
        meaning: what happens, for a newcomer.
        switch: how to reproduce it here.
        effect: measures it in the runs of one dataset, the run in question first; None where they do not show it.
        on: how the runs' own settings tell whether they have it.
        quirks: what `benchmarks/gap_causes.py` calls it: measured once, on other data.
        fact: which of a published dataset's facts stands in where the run shows nothing, and its words.
    """

    title: str
    meaning: str
    switch: str
    effect: Callable[[Run, Sequence[Run]], Effect] | None = None
    on: Switch | None = None
    quirks: tuple[str, ...] = ()
    fact: tuple[str, str] | None = None


def _collisions(run: Run, _: Sequence[Run]) -> Effect:
    item = run.metrics.get("item")
    name = "HR@10" if "HR@10" in run.metrics["sid"] else next(iter(run.metrics["sid"]))
    if item is None:
        return None
    on_sid, cell = run.metrics["sid"][name]["value"], item[name]
    text = (
        f"{name} on SIDs {on_sid:.4f}, on items {cell['value']:.4f} expected ({signed(cell['value'] - on_sid)}), "
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
        f"HR@10 on {search['rows']} examples: {rates}, whole catalog in sight {search['exact']['HR@10']:.4f}; with this "
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
    group = next((group for group in seeds([run, *others]) if run in group), None)
    if group is None:
        return None
    values = [other.metrics["sid"]["HR@10"]["value"] for other in group]
    return f"HR@10 over {len(values)} seeds: {min(values):.4f} to {max(values):.4f}"


CAUSES = (
    Cause(
        "prompt mismatch",
        "the model is asked in evaluation with another sentence than in training",
        "--prompts.style alpaca --prompts.wording released --prompts.eval_style released",
        on=Switch(("eval", "prompts", "eval_style"), lambda style: style == "released"),
        quirks=("prompt mismatch",),
    ),
    Cause(
        "wrong reward targets",
        "the reward looks its target up by the history's text, so that of equal histories the last one wins",
        "--rl.targets last_row",
        on=Switch(("rl", "rl", "targets"), lambda targets: targets in ("last_row", "released")),
        quirks=("wrong reward targets",),
    ),
    Cause(
        "validation labels in training rewards",
        "the look-up table of rewards is overwritten with validation targets",
        "--rl.targets released",
        on=Switch(("rl", "rl", "targets"), lambda targets: targets == "released"),
        quirks=("validation labels in training rewards",),
    ),
    Cause(
        "answer in the prompt",
        "alignment prompts end with their own answer",
        "--sft.answer_in_prompt true",
        on=Switch(("sft", "sft", "answer_in_prompt"), lambda answered: answered is True),
        quirks=("answer in the prompt",),
    ),
    Cause(
        "generation defaults",
        "the checkpoint's generation_config turns beam search into sampling with temperature and repetition penalty",
        "python benchmarks/generation_defaults.py RUN --config NAME; the decoder itself never reads it",
        quirks=("generation defaults",),
    ),
    Cause(
        "collisions",
        "several items share a SID and count as one hit",
        "--sid.collisions keep",
        _collisions,
        fact=("shared_sid", "share their SID in the released index"),
    ),
    Cause(
        "repeats",
        "the target already stands in the history, often a duplicate of the same purchase",
        "none needed: a property of the data",
        _slice("target in the history", "repeat"),
        fact=("repeat", "stand in their own history"),
    ),
    Cause(
        "same-day ties",
        "target and last history item have one timestamp, so which comes next is arbitrary",
        "none needed: a property of the data",
        _slice("target's time", "same as the item before"),
        fact=("same_time", "have the timestamp of the item before"),
    ),
    Cause(
        "beam width and search error",
        "a narrow beam drops the target's prefix early; a wide one is slow",
        "--eval.num_beams N; --eval.oracle_examples N measures it",
        _search,
        on=Switch(("eval", "eval", "num_beams"), lambda beams: beams is not None and beams < _WIDEST),
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


def _shown(cell: Mapping[str, Any]) -> str:
    text = f"{signed(cell['value'])} [{signed(cell['low'])}, {signed(cell['high'])}]"
    return text + (" (noise)" if cell["noise"] else "")


def _measured(quirks: Sequence[str]) -> Effect:
    """What the benchmark found of some of its quirks, in words."""
    stored = _elsewhere()
    known = [name for name in quirks if name in stored["quirks"]]
    if not known:
        return None
    parts = []
    for name in known:
        figures = ", ".join(f"{metric} {_shown(stored['quirks'][name][metric])}" for metric in _METRICS)
        parts.append(figures if len(known) == 1 else f"{name}: {figures}")
    return f"on {stored['dataset']}, {stored['seeds']} seeds: {'; '.join(parts)}"


def _state(switch: Switch, runs: Sequence[Run]) -> str:
    """Which of the runs have the mistake, by their own settings."""
    told = [run for run in runs if run.settings is not None]
    if not told:
        return "unknown: a predictions file does not tell how it was made"
    having = [f"{run.label} ({switch.described(run)})" for run in told if switch.on(run.setting(switch.at))]
    text = f"ON in {', '.join(having)}" if having else "not set in these runs"
    unknown = [run.label for run in runs if run.settings is None]
    return text + (f"; unknown for {', '.join(unknown)}" if unknown else "")


def _beside(switch: Switch, runs: Sequence[Run], differences: Differences) -> list[str]:
    """Each run with the mistake minus one that differs in this setting alone, and at most in its seed."""
    found = []
    for run in runs:
        if run.settings is None or not switch.on(run.setting(switch.at)):
            continue
        clean = [
            other
            for other in runs
            if other.settings is not None
            and not switch.on(other.setting(switch.at))
            and other.recipe(switch.at) == run.recipe(switch.at)
        ]
        if not clean:
            continue
        other = min(clean, key=lambda one: one.seed != run.seed)  # with the same seed, where there is one
        cells = _minus(run, other, differences)
        figures = ", ".join(f"{metric} {_shown(cells[metric])}" for metric in _METRICS if metric in cells)
        found.append(f"{run.label} minus {other.label} ({switch.described(other)}), paired: {figures}")
    return found


def _minus(run: Run, other: Run, differences: Differences) -> Mapping[str, Mapping[str, Any]]:
    if (other.label, run.label) in differences:
        return differences[other.label, run.label]
    return {
        metric: {**cell, "value": -cell["value"], "low": -cell["high"], "high": -cell["low"]}
        for metric, cell in differences[run.label, other.label].items()
    }


def _known(fact: tuple[str, str], dataset: str) -> str:
    name, words = fact
    facts = published()["datasets"][dataset]["facts"]
    share = f"{100 * facts[name]:.3g} % of the targets {words}"
    return f"not shown by this run; of the released test split, {share} ({facts['source']})"


def checklist(run: Run, others: Sequence[Run], differences: Differences, dataset: str | None = None) -> list[dict[str, Any]]:
    """Each cause with what the runs of a report tell of it.

    Args:
        run: the one in question.
        differences: of every two of the runs.
        dataset: the published dataset whose test split this is, None where it is another.

    Returns:
        Per cause `title`, `meaning`, `switch`; `on`, the labels of the runs that were made with it; and `effect` in words, None
        where neither a run at hand nor our benchmark shows it.
    """
    found = []
    for cause in CAUSES:
        said: list[Effect] = []
        models = [one for one in (run, *others) if one.recommender in ("sft", "rl", "file")]
        if cause.on:
            said += [_state(cause.on, models), *_beside(cause.on, models, differences)]
        own = cause.effect(run, others) if cause.effect else None
        said += [own, _measured(cause.quirks)]
        if own is None and cause.fact and dataset:
            said.append(_known(cause.fact, dataset))
        found.append(
            {
                "title": cause.title,
                "meaning": cause.meaning,
                "switch": cause.switch,
                "on": [one.label for one in models if cause.on and cause.on.on(one.setting(cause.on.at))],
                "effect": "; ".join(text for text in said if text) or None,
            }
        )
    return found
