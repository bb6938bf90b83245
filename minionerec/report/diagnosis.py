"""What RL changed: the RL model compared with its SFT model, per cut-off, per level, per slice, and in plain sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from minionerec.config import CUTOFFS, Config
from minionerec.eval.compare import align, shared_cutoffs
from minionerec.eval.levels import first_matches
from minionerec.eval.metrics import values_per_row
from minionerec.eval.metrics_json import Metrics
from minionerec.eval.slices import Parts, slice_differences
from minionerec.report.evaluated import FAMILIES, Evaluated
from minionerec.report.page import chance, signed
from minionerec.report.table import Cell, Row, Table, difference, interval, percentage, share
from minionerec.statistics.differences import differences

Changes = Mapping[str, Mapping[str, Any]]  # metric to RL minus SFT, see `eval.compare.compare`

_SHARPER = ("HR@1", "HR@3")
_DEEPER = ("HR@20", "HR@50")
_SLICED = "HR@10"
_LEVELS_READ = ("1", "10", "50")  # cut-offs of the sentences about levels
_BY_CHANCE = "If RL changed nothing, about one test in twenty would still come out beyond noise."


@dataclass(frozen=True)
class LevelChange:
    """Cumulative accuracy of both models: share of examples in which one of the first `k` SIDs has the codes of `prefix`."""

    k: str
    prefix: str
    sft: float
    rl: float
    change: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The change in words."""
        return f"{self.prefix} in the top {self.k} ({signed(self.change['value'])})"


@dataclass(frozen=True)
class SliceChange:
    """HR@10 of both models, with intervals, on the part of the split in which `question` has this `answer`."""

    question: str
    answer: str
    share: float
    sft: Mapping[str, float]
    rl: Mapping[str, float]
    change: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The change in words."""
        return f"{self.question}: {self.answer} ({signed(self.change['value'])})"


_Change = TypeVar("_Change", LevelChange, SliceChange)


def over_sharpened(changes: Changes) -> bool:
    """Whether RL moved weight to the top of the lists at the cost of their depth.

    That is a gain at HR@1 or HR@3 and a loss at HR@20 or HR@50, both beyond noise.
    """
    return _gained_at_the_top(changes) and _lost_in_depth(changes)


def _gained_at_the_top(changes: Changes) -> bool:
    return any(_is_beyond_noise(changes[name], 1) for name in _SHARPER if name in changes)


def _lost_in_depth(changes: Changes) -> bool:
    return any(_is_beyond_noise(changes[name], -1) for name in _DEEPER if name in changes)


def _is_beyond_noise(change: Mapping[str, Any], sign: int) -> bool:
    """Whether a change is beyond noise and of this sign, see `statistics.intervals.beyond_noise`."""
    return not change["noise"] and change["value"] * sign > 0


def level_changes(sft: Evaluated, rl: Evaluated, config: Config) -> list[LevelChange]:
    """Cumulative level accuracy of both models at each cut-off that both lists reach.

    Raises:
        DataError: the models were measured on different examples.
    """
    order = align(sft.lists, rl.lists)
    first_before, first_after = first_matches(sft.lists)[1], first_matches(rl.lists)[1][order]
    table_cells = {
        f"{k} {prefix}": (k, prefix, level)
        for k, shares in sft.metrics.levels["cumulative"].items()
        if int(k) in shared_cutoffs(sft.lists, rl.lists)
        for level, prefix in enumerate(shares)
    }
    before = {name: (first_before[:, level] < int(k)).astype(float) for name, (k, _, level) in table_cells.items()}
    after = {name: (first_after[:, level] < int(k)).astype(float) for name, (k, _, level) in table_cells.items()}
    changes = differences(before, after, config.eval.resamples, config.seed, sft.lists.units())
    return [
        LevelChange(k, prefix, float(before[name].mean()), float(after[name].mean()), changes[name])
        for name, (k, prefix, _) in table_cells.items()
    ]


def slice_changes(sft: Evaluated, rl: Evaluated, parts: Parts, config: Config) -> list[SliceChange]:
    """HR@10 of both models on each part of the split that has examples; nothing if a list is shorter than 10.

    Args:
        parts: of the rows of `sft`.

    Raises:
        DataError: the models were measured on different examples.
    """
    if 10 not in shared_cutoffs(sft.lists, rl.lists):
        return []
    order, units = align(sft.lists, rl.lists), sft.lists.units()
    before = {_SLICED: values_per_row(sft.lists, (10,), "sid")[_SLICED]}
    after = {_SLICED: values_per_row(rl.lists, (10,), "sid")[_SLICED][order]}
    changes = slice_differences(before, after, parts, units, config.eval.resamples, config.seed)
    slices = []
    for question, answers in changes.items():
        for answer, change in answers.items():
            sft_part, rl_part = (model.metrics.slices[question][answer] for model in (sft, rl))
            slices.append(
                SliceChange(question, answer, sft_part["share"], sft_part[_SLICED], rl_part[_SLICED], change[_SLICED])
            )
    return slices


def cutoff_tables(changes: Changes) -> list[Table]:
    """The changes as one table per metric family."""
    return [
        Table(
            (family,),
            ("Change", "p", "Detectable"),
            tuple(
                Row((name,), (difference(change), _p_value(change), share(change["detectable"])))
                for name, change in changes.items()
                if name.startswith(f"{family}@")
            ),
        )
        for family in FAMILIES
    ]


def level_table(levels: Sequence[LevelChange]) -> Table:
    """The changes per level, grouped by cut-off."""
    rows = (
        Row((row.k, row.prefix), (difference(row.change), _p_value(row.change), share(row.sft), share(row.rl)))
        for row in levels
    )
    return Table(("K", "Codes"), ("Change", "p", "SFT", "SFT + RL"), tuple(rows))


def slice_table(slices: Sequence[SliceChange]) -> Table:
    """The changes per slice, grouped by question."""
    rows = (
        Row(
            (row.question, row.answer),
            (difference(row.change), _p_value(row.change), interval(row.sft), interval(row.rl), percentage(row.share)),
        )
        for row in slices
    )
    return Table(("Question", "Part"), ("Change", "p", "SFT", "SFT + RL", "Share"), tuple(rows))


def _p_value(change: Mapping[str, Any]) -> Cell:
    return Cell(chance(change["p"]).removeprefix("p "))


def reading(
    sft: Metrics,
    rl: Metrics,
    changes: Changes,
    levels: Sequence[LevelChange],
    slices: Sequence[SliceChange],
    log: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What the numbers say, in plain sentences.

    Args:
        sft, rl: the metrics of both models.
        log: RL's training log.
    """
    if _best_step(log) == 0:  # both models have the same weights: there is nothing to compare
        return [*_on_steps(log), *_on_training(log)]
    return [
        *_on_steps(log),
        *_on_metrics(changes),
        _on_sharpness(changes),
        *_on_levels(levels),
        *_on_slices(slices),
        *_on_calibration(sft.calibration, rl.calibration, rl.rows),
        *_on_breadth(sft.exposure, rl.exposure),
        *_on_training(log),
    ]


def _enumerate(names: Sequence[str], word: str = "and") -> str:
    return ", ".join(names[:-1]) + (f" {word} " if len(names) > 1 else "") + names[-1]


def _on_steps(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """How long RL trained, and whose step its model is: a claim about RL is one about so many steps."""
    steps = max((entry["step"] for entry in log), default=0)
    if not steps:
        return []
    text = f"RL made {steps:,} optimiser step{'s' * (steps != 1)}."
    best = _best_step(log)
    if best == 0:
        return [f"{text} None of them was better than SFT on the valid split, so the RL model is the SFT model."]
    return [text if best is None else f"{text} Its model is that of step {best:,}, the best on the valid split."]


def _best_step(log: Sequence[Mapping[str, Any]]) -> int | None:
    """The step that was the best on valid, 0 for the SFT model; None if RL was not validated."""
    return next((entry["best_step"] for entry in reversed(log) if "best_step" in entry), None)


def _on_metrics(changes: Changes) -> list[str]:
    names = [name for family in ("HR", "NDCG") for k in CUTOFFS if (name := f"{family}@{k}") in changes]
    better = [name for name in names if _is_beyond_noise(changes[name], 1)]
    worse = [name for name in names if _is_beyond_noise(changes[name], -1)]
    sentences = []
    if better:
        sentences.append(f"RL is better than SFT beyond noise at {_enumerate(better)}.")
    if worse:
        sentences.append(f"RL is worse than SFT beyond noise at {_enumerate(worse)}.")
    if sentences:
        return [*sentences, f"{len(names)} metrics were tested. {_BY_CHANCE}"]
    detectable = changes["NDCG@10"]["detectable"] if "NDCG@10" in changes else None
    hint = f" With so many users, only a true change of about {detectable:.4f} in NDCG@10 would show." if detectable else ""
    return [f"At no cut-off is RL's change beyond noise.{hint}"]


def _on_sharpness(changes: Changes) -> str:
    if over_sharpened(changes):
        return (
            "The lists are over-sharpened: RL gained at the top and lost in depth. Try fewer steps, a larger KL weight, or "
            "a reward that still counts lower ranks."
        )
    if _lost_in_depth(changes):
        return (
            "The lists lost in depth without a gain beyond noise at the top: RL made them worse. Try a smaller learning rate "
            "or fewer steps first."
        )
    reached = [name for name in _DEEPER if name in changes]
    if not reached:
        return f"The lists are too short for {_enumerate(_DEEPER)}, so they cannot show whether RL lost in depth."
    return f"No sign of over-sharpening: no loss beyond noise at {_enumerate(reached)}."


def _beyond_noise(rows: Sequence[_Change], sign: int) -> list[_Change]:
    """The rows whose change is beyond noise and of this sign."""
    return [row for row in rows if _is_beyond_noise(row.change, sign)]


def _on_levels(levels: Sequence[LevelChange]) -> list[str]:
    rows = [row for row in levels if row.k in _LEVELS_READ]
    if not rows:
        return []
    sentences = [
        f"Along the SID, RL is {word} beyond noise at {_enumerate([row.text for row in changed])}."
        for word, sign in (("better", 1), ("worse", -1))
        if (changed := _beyond_noise(rows, sign))
    ]
    if not sentences:
        cutoffs = _enumerate(list(dict.fromkeys(row.k for row in rows)), "or")
        return [f"Along the SID, no change is beyond noise in the top {cutoffs}."]
    first_level = rows[0].prefix
    losses = _beyond_noise(rows, -1)
    if any(row.prefix == first_level for row in losses):
        sentences.append(f"A loss at {first_level} means that whole branches of the catalog fell out of the lists.")
    elif losses:
        sentences.append(
            f"{first_level} is not lost, later codes are: the right branch stays in the lists, the item in it does not."
        )
    return [*sentences, f"{len(rows)} prefixes were tested. {_BY_CHANCE}"]


def _on_slices(slices: Sequence[SliceChange]) -> list[str]:
    if not slices:
        return []
    sentences = [
        f"In {_SLICED}, RL {word} beyond noise on {_enumerate([row.text for row in changed])}."
        for word, sign in (("gains", 1), ("loses", -1))
        if (changed := _beyond_noise(slices, sign))
    ]
    if not sentences:
        return [f"On none of the {len(slices)} parts of the split is the change in {_SLICED} beyond noise."]
    return [*sentences, f"{len(slices)} parts were tested. {_BY_CHANCE}"]


def _on_calibration(sft: Sequence[Mapping[str, Any]] | None, rl: Sequence[Mapping[str, Any]] | None, rows: int) -> list[str]:
    if not sft or not rl:
        return []
    before, after = sft[-1], rl[-1]
    return [
        f"On these {rows:,} examples the first recommendation has a mean probability of {before['confidence']:.3f} before RL "
        f"and {after['confidence']:.3f} after, and a share of hits of {before['accuracy']:.3f} and {after['accuracy']:.3f} "
        f"(calibration error {before['error']:.3f}, then {after['error']:.3f}). Whether this is noise was not tested."
    ]


def _on_breadth(sft: Mapping[str, Any] | None, rl: Mapping[str, Any] | None) -> list[str]:
    if not sft or not rl or sft["diversity"] is None or rl["diversity"] is None or sft["coverage"] is None:
        return []
    return [
        f"In the first {sft['k']} places intra-list diversity is {sft['diversity']:.3f} before RL and {rl['diversity']:.3f} "
        f"after; all lists together show {sft['coverage']:.1%} of the catalog before and {rl['coverage']:.1%} after."
    ]


def _on_training(log: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences = []
    if kl := _logged(log, "kl"):
        sentences.append(
            f"In training the policy moved away from SFT by a KL divergence of {kl[-1]:.4f} at the end, {max(kl):.4f} at most."
        )
    if with_signal := _logged(log, "groups_with_signal"):
        without = 1 - sum(with_signal) / len(with_signal)
        sentences.append(f"On average {without:.0%} of the beam groups carried no signal: all their rewards were equal.")
    # The objective `exact` logs an entropy, too, and rolls nothing out.
    of_training = (
        ("entropy", "The policy has", "nats of entropy per token"),
        ("first_codes", "Rollouts have", "different first codes per group"),
    )
    for name, whose, words in of_training:
        values = _logged(log, name)
        if len(values) > 1:
            tenth = max(1, len(values) // 10)
            first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
            sentences.append(f"{whose} {first:.3f} {words} in the first tenth of training, and {last:.3f} in the last.")
    return sentences


def _logged(log: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [entry[name] for entry in log if isinstance(entry.get(name), int | float)]
