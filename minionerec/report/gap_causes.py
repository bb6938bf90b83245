"""Why numbers differ from the paper's: the checklist, with the measured effect if a run of the report shows it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from minionerec.eval.lists import headline_cutoff
from minionerec.report.evaluated import Evaluated, Setting
from minionerec.report.page import signed
from minionerec.report.published import published
from minionerec.report.runs import seed_groups

Effect = Callable[[Evaluated, Sequence[Evaluated]], str | None]
PairedDifferences = Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]  # labels of two runs: the second minus the first

_METRICS = ("HR@10", "NDCG@10")
_PAPER_BEAMS = 50


@dataclass(frozen=True)
class Switch:
    """The setting that makes a mistake.

    Attributes:
        setting: where a run's manifests hold it.
        makes_mistake: whether a value of it makes the mistake.
    """

    setting: Setting
    makes_mistake: Callable[[Any], bool]

    def is_on(self, run: Evaluated) -> bool:
        """Whether a run was made with the mistake."""
        return self.makes_mistake(run.setting(self.setting))

    def described(self, run: Evaluated) -> str:
        """The setting of a run for display."""
        return f"{self.setting[1]}.{self.setting[2]} {str(run.setting(self.setting)).lower()}"


@dataclass(frozen=True)
class Cause:
    """One line of the checklist.

    Attributes:
        title: its name.
        meaning: what happens, for a newcomer.
        switch: how to reproduce it here.
        effect: measures it in the runs of one dataset, the run in question first; None if they do not show it.
        on: how the runs' own settings show whether they have it.
        quirks: its names in `benchmarks/gap_causes.py`, which measured it once, on other data.
        comparisons: its names in `benchmarks/rl_arms.py`, which measured it once, and the words for each.
        fact: a fact about a published dataset that is shown if no run shows the effect, and its words.
    """

    title: str
    meaning: str
    switch: str
    effect: Effect | None = None
    on: Switch | None = None
    quirks: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    fact: tuple[str, str] | None = None


@dataclass(frozen=True)
class CheckedCause:
    """A cause with what the runs of a report show of it.

    Attributes:
        title, meaning, switch: see `Cause`.
        on: labels of the runs that were made with it.
        effect: in words; None if neither a run nor our benchmark measured it.
    """

    title: str
    meaning: str
    switch: str
    on: list[str]
    effect: str | None


def collision_effect(run: Evaluated, _: Sequence[Evaluated]) -> str | None:
    """Metrics on SIDs and on items, and how many targets share their SID; None if items are unknown."""
    item_metrics = run.metrics.item
    if item_metrics is None:
        return None
    name = f"HR@{headline_cutoff(run.metrics.cutoffs)}"
    on_sids, on_items = run.metrics.sid[name], item_metrics[name]
    text = (
        f"{name} on SIDs {_with_interval(on_sids)}, on items {_with_interval(on_items)} expected "
        f"({signed(on_items['value'] - on_sids['value'])}), "
        f"{on_items['best']:.4f} with the luckiest order of tied items, {on_items['worst']:.4f} with the unluckiest"
    )
    shared = run.metrics.slices.get("target's SID", {}).get("shared by several items")
    return text + (f"; {shared['share']:.1%} of the targets share their SID" if shared else "")


def slice_effect(question: str, answer: str) -> Effect:
    """Measures a cause by the metrics with and without the part of the split in which `question` has this `answer`."""

    def effect(run: Evaluated, _: Sequence[Evaluated]) -> str | None:
        parts = run.metrics.slices.get(question)
        if parts is None:
            return None
        if answer not in parts:
            return f"no target is of this kind ({question}: {answer})"
        part = parts[answer]
        name = next(metric for metric in part if metric.startswith("HR@"))
        overall, rows = run.metrics.sid[name]["value"], run.metrics.rows
        text = f"{part['share']:.1%} of the targets, {name} {_with_interval(part[name])} on them"
        if rest := rows - part["rows"]:
            without = (overall * rows - part[name]["value"] * part["rows"]) / rest
            text += f"; without them {name} is {without:.4f} instead of {overall:.4f}"
        return text

    return effect


def search_error_effect(run: Evaluated, _: Sequence[Evaluated]) -> str | None:
    """A metric per beam width, and how often the run's own width loses a target; None if the search was not replayed."""
    search = run.metrics.search
    if not search:
        return None
    name = "HR@10" if "HR@10" in search["exact"] else "HR@1"  # narrow beams have lists of fewer than 10
    rates = ", ".join(f"{width} beams {rates[name]:.4f}" for width, rates in search["widths"].items() if name in rates)
    beams = search["num_beams"]
    missed = search["widths"][str(beams)]["missed"]
    return (
        f"{name} on {search['rows']} examples: {rates}, whole catalog scored {search['exact'][name]:.4f}; with this "
        f"run's {beams} beams the search itself loses a target that belongs in the list in {missed:.2%} of the examples"
    )


def size_effect(run: Evaluated, others: Sequence[Evaluated]) -> str | None:
    """HR@10 by the number of parameters; None if the runs of this recommender have only one size."""
    models = sorted(
        (model for model in (run, *others) if model.parameters and model.name == run.name and "HR@10" in model.metrics.sid),
        key=lambda model: (model.parameters, model.metrics.sid["HR@10"]["value"]),
    )
    if len({model.parameters for model in models}) < 2:
        return None
    return "HR@10 by parameters: " + ", ".join(
        f"{(model.parameters or 0) / 1e6:,.1f} M {_with_interval(model.metrics.sid['HR@10'])}" for model in models
    )


def seed_effect(run: Evaluated, others: Sequence[Evaluated]) -> str | None:
    """The range of HR@10 over the seeds of the run's recipe; None if there is only one seed, or lists are shorter."""
    group = next((group for group in seed_groups([run, *others]) if run in group), None)
    if group is None or any("HR@10" not in other.metrics.sid for other in group):
        return None
    values = [other.metrics.sid["HR@10"]["value"] for other in group]
    return f"HR@10 over {len(values)} seeds: {min(values):.4f} to {max(values):.4f}"


def _with_interval(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"


CAUSES = (
    Cause(
        "prompt mismatch",
        "evaluation asks the model with another sentence than training did",
        "--prompts.style alpaca --prompts.wording released --prompts.eval_style released",
        on=Switch(("eval", "prompts", "eval_style"), lambda style: style == "released"),
        quirks=("prompt mismatch",),
    ),
    Cause(
        "wrong reward targets",
        "the reward looks its target up by the text of the history: of rows with equal histories, the last one wins",
        "--rl.targets last_row",
        on=Switch(("rl", "rl", "targets"), lambda targets: targets in ("last_row", "released")),
        quirks=("wrong reward targets",),
    ),
    Cause(
        "validation labels in training rewards",
        "validation targets overwrite training targets in the rewards' look-up table",
        "--rl.targets released",
        on=Switch(("rl", "rl", "targets"), lambda targets: targets == "released"),
        quirks=("validation labels in training rewards",),
    ),
    Cause(
        "answer in the prompt",
        "alignment prompts end with their own answer",
        "--sft.answer_in_prompt true",
        on=Switch(("sft", "sft", "answer_in_prompt"), lambda answer_in_prompt: answer_in_prompt is True),
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
        collision_effect,
        fact=("shared_sid", "share their SID in the released index"),
    ),
    Cause(
        "repeats",
        "the target is already in the history, often a duplicate of the same purchase",
        "none: a property of the data",
        slice_effect("target in the history", "repeat"),
        fact=("repeat", "are in their own history"),
    ),
    Cause(
        "same-day ties",
        "target and last history item have the same timestamp, so which of them comes next is arbitrary",
        "none: a property of the data",
        slice_effect("target's time", "same as the item before"),
        fact=("same_time", "have the timestamp of the item before"),
    ),
    Cause(
        "beam width and search error",
        "a narrow beam drops the target's prefix early; a wide one is slow",
        "--eval.num_beams N; --eval.oracle_examples N measures it",
        search_error_effect,
        on=Switch(("eval", "eval", "num_beams"), lambda beams: beams is not None and beams < _PAPER_BEAMS),
        quirks=("20 beams", "10 beams"),
    ),
    Cause(
        "RL after SFT that stopped early",
        "SFT chosen by its lowest loss stops before its best ranking; what RL then gains may be what more SFT gains",
        "--sft.best_metric loss; python benchmarks/rl_arms.py compares four arms of equal compute",
        on=Switch(("sft", "sft", "best_metric"), lambda metric: metric == "loss"),
        comparisons=(
            "RL after SFT chosen by loss, against more SFT",
            "SFT chosen by ranking, against RL after SFT chosen by loss",
            "RL after SFT chosen by ranking, against more SFT",
        ),
    ),
    Cause("model size", "a smaller model than the paper's", "--model.path, --model.hidden_size, --model.layers", size_effect),
    Cause("seeds", "the luck of a single run", "--seed N with a folder of its own (--out)", seed_effect),
)


@cache
def stored_effects() -> dict[str, Any]:
    """`gap_causes.json`: what `benchmarks/gap_causes.py` measured, and `dataset`, the name of the data that it ran on."""
    text = (resources.files("minionerec.report") / "gap_causes.json").read_text(encoding="utf-8")
    effects: dict[str, Any] = json.loads(text)
    return effects


def stored_effect(quirks: Sequence[str]) -> str | None:
    """What the benchmark measured about some of its quirks, in words; None if it measured none of them."""
    stored = stored_effects()
    names = [name for name in quirks if name in stored["quirks"]]
    if not names:
        return None
    parts = []
    for name in names:
        figures = ", ".join(f"{metric} {_describe(stored['quirks'][name][metric])}" for metric in _METRICS)
        parts.append(figures if len(names) == 1 else f"{name}: {figures}")
    return f"on {stored['dataset']}, {stored['seeds']} seeds: {'; '.join(parts)}"


@cache
def stored_arms() -> dict[str, Any] | None:
    """`rl_arms.json`: what `benchmarks/rl_arms.py` measured on a test split; None if it has not been measured."""
    file = resources.files("minionerec.report") / "rl_arms.json"
    if not file.is_file():
        return None
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return stored


def stored_comparisons(names: Sequence[str]) -> str | None:
    """What the benchmark of the arms measured, in words; None if it did not."""
    stored = stored_arms()
    if stored is None or not names:
        return None
    parts = []
    for name in names:
        cells = stored["comparisons"][name]
        parts.append(f"{name}: " + ", ".join(f"{metric} {_describe(cells[metric])}" for metric in _METRICS))
    return f"on {stored['dataset']}, {stored['split']} split, {stored['seeds']} seeds: {'; '.join(parts)}"


def _describe(difference: Mapping[str, Any]) -> str:
    text = f"{signed(difference['value'])} [{signed(difference['low'])}, {signed(difference['high'])}]"
    return text + (" (noise)" if difference["noise"] else "")


def _describe_state(switch: Switch, runs: Sequence[Evaluated]) -> str:
    """Which of the runs have the mistake, by their own settings."""
    with_settings = [run for run in runs if run.settings is not None]
    if not with_settings:
        return "unknown: a predictions file does not say how it was made"
    mistaken = [f"{run.label} ({switch.described(run)})" for run in with_settings if switch.is_on(run)]
    text = f"ON in {', '.join(mistaken)}" if mistaken else "not set in these runs"
    unknown = [run.label for run in runs if run.settings is None]
    return text + (f"; unknown for {', '.join(unknown)}" if unknown else "")


def _compare_with_clean(switch: Switch, runs: Sequence[Evaluated], differences: PairedDifferences) -> list[str]:
    """Each run with the mistake minus a run that differs in this setting alone, and at most in its seed."""
    sentences = []
    for run in runs:
        if run.settings is None or not switch.is_on(run):
            continue
        recipe = run.recipe(switch.setting)
        clean_runs = [
            other
            for other in runs
            if other.settings is not None and not switch.is_on(other) and other.recipe(switch.setting) == recipe
        ]
        if not clean_runs:
            continue
        clean = min(clean_runs, key=lambda other: other.seed != run.seed)  # with the same seed, if there is one
        difference = _difference(run, clean, differences)
        figures = ", ".join(f"{metric} {_describe(difference[metric])}" for metric in _METRICS if metric in difference)
        sentences.append(f"{run.label} minus {clean.label} ({switch.described(clean)}), paired: {figures}")
    return sentences


def _difference(run: Evaluated, other: Evaluated, differences: PairedDifferences) -> Mapping[str, Mapping[str, Any]]:
    """`run` minus `other`; the differences hold each pair in one direction only."""
    if (other.label, run.label) in differences:
        return differences[other.label, run.label]
    return {
        metric: {**cell, "value": -cell["value"], "low": -cell["high"], "high": -cell["low"]}
        for metric, cell in differences[run.label, other.label].items()
    }


def _describe_fact(fact: tuple[str, str], dataset: str) -> str:
    name, words = fact
    facts = published()["datasets"][dataset]["facts"]
    share = f"{100 * facts[name]:.3g} % of the targets {words}"
    return f"not shown by this run; in the released test split, {share} ({facts['source']})"


def check_causes(
    run: Evaluated, others: Sequence[Evaluated], differences: PairedDifferences, dataset: str | None = None
) -> list[CheckedCause]:
    """Each cause with what the runs of a report show of it.

    Args:
        run: the run in question.
        others: the other runs on the same dataset.
        differences: of every two of the runs.
        dataset: the published dataset whose test split this is; None if it is another.
    """
    models = [model for model in (run, *others) if model.name in ("sft", "rl", "file")]
    checked = []
    for cause in CAUSES:
        sentences: list[str | None] = []
        if cause.on:
            sentences += [_describe_state(cause.on, models), *_compare_with_clean(cause.on, models, differences)]
        measured = cause.effect(run, others) if cause.effect else None
        sentences += [measured, stored_effect(cause.quirks), stored_comparisons(cause.comparisons)]
        if measured is None and cause.fact and dataset:
            sentences.append(_describe_fact(cause.fact, dataset))
        mistaken = [model.label for model in models if cause.on and cause.on.is_on(model)]
        effect = "; ".join(sentence for sentence in sentences if sentence) or None
        checked.append(CheckedCause(cause.title, cause.meaning, cause.switch, mistaken, effect))
    return checked
