"""What RL changed: the RL model against the SFT model it came from, per cut-off, per level, per slice, and a plain reading."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minionerec.config import CUTOFFS, Config
from minionerec.eval.compare import align, shared_cutoffs
from minionerec.eval.levels import first_matches
from minionerec.eval.metrics import ranks
from minionerec.eval.slices import Parts
from minionerec.report.page import signed
from minionerec.report.run_page import Method
from minionerec.statistics.differences import differences
from minionerec.statistics.ranking import per_user

_SHARPER = ("HR@1", "HR@3")
_DEEPER = ("HR@20", "HR@50")
_SLICED = "HR@10"
_LEVELS_READ = ("1", "10", "50")  # cut-offs of the sentences about levels


def over_sharpened(changes: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether RL moved weight to the top of the lists at the cost of their depth.

    That is a gain at HR@1 or HR@3 and a loss at HR@20 or HR@50, both beyond noise.
    """
    return _gained_at_the_top(changes) and _lost_in_depth(changes)


def _gained_at_the_top(changes: Mapping[str, Mapping[str, float]]) -> bool:
    return any(changes[name]["low"] > 0 for name in _SHARPER if name in changes)


def _lost_in_depth(changes: Mapping[str, Mapping[str, float]]) -> bool:
    return any(changes[name]["high"] < 0 for name in _DEEPER if name in changes)


def level_changes(sft: Method, rl: Method, config: Config) -> list[dict[str, Any]]:
    """Cumulative level accuracy of both models per cut-off that both lists reach.

    Returns:
        Rows of `k`, `prefix`, the shares `sft` and `rl`, and `change`, RL minus SFT as `eval.compare.compare` has it.

    Raises:
        DataError: the two were measured on different examples.
    """
    order = align(sft.lists, rl.lists)
    old, new = first_matches(sft.lists)[1], first_matches(rl.lists)[1][order]
    places = {
        f"{k} {prefix}": (k, prefix, level)
        for k, shares in sft.metrics["levels"]["cumulative"].items()
        if int(k) in shared_cutoffs(sft.lists, rl.lists)
        for level, prefix in enumerate(shares)
    }
    before = {name: (old[:, level] < int(k)).astype(float) for name, (k, _, level) in places.items()}
    after = {name: (new[:, level] < int(k)).astype(float) for name, (k, _, level) in places.items()}
    changes = differences(before, after, config.eval.resamples, config.seed, sft.lists.units())
    return [
        {
            "k": k,
            "prefix": prefix,
            "sft": float(before[name].mean()),
            "rl": float(after[name].mean()),
            "change": changes[name],
        }
        for name, (k, prefix, _) in places.items()
    ]


def slice_changes(sft: Method, rl: Method, parts: Parts, config: Config) -> list[dict[str, Any]]:
    """HR@10 of both models on parts of the split.

    Args:
        parts: of the rows of `sft`.

    Returns:
        Rows of `question`, `answer`, `share` of the examples, `sft` and `rl` with intervals, and `change`, RL minus SFT as
        `eval.compare.compare` has it; empty parts are left out. Nothing where a list is shorter than 10.

    Raises:
        DataError: the two were measured on different examples.
    """
    if 10 not in shared_cutoffs(sft.lists, rl.lists):
        return []
    order, units = align(sft.lists, rl.lists), sft.lists.units()
    old, new = (per_user(ranks(method.lists), (10,))[_SLICED] for method in (sft, rl))
    new, found = new[order], []
    for question, answers in parts.items():
        for answer, rows in answers.items():
            if not rows.any():
                continue
            own = None if units is None else np.unique(units[rows], return_inverse=True)[1]
            change = differences({_SLICED: old[rows]}, {_SLICED: new[rows]}, config.eval.resamples, config.seed, own)
            before, after = (method.metrics["slices"][question][answer] for method in (sft, rl))
            found.append(
                {
                    "question": question,
                    "answer": answer,
                    "share": before["share"],
                    "sft": before[_SLICED],
                    "rl": after[_SLICED],
                    "change": change[_SLICED],
                }
            )
    return found


def _words(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def reading(
    sft: Mapping[str, Any],
    rl: Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any]],
    levels: Sequence[Mapping[str, Any]],
    slices: Sequence[Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What the figures say, in plain sentences.

    Args:
        sft, rl: `metrics.json` of both.
        changes: RL minus SFT per metric, see `eval.compare.compare`.
        levels, slices: see `level_changes` and `slice_changes`.
        log: RL's training log.
    """
    ranked = [f"{family}@{k}" for family in ("HR", "NDCG") for k in CUTOFFS]
    better = [name for name in ranked if name in changes and changes[name]["low"] > 0]
    worse = [name for name in ranked if name in changes and changes[name]["high"] < 0]
    said = []
    if better:
        said.append(f"RL is better than SFT beyond noise at {_words(better)}.")
    if worse:
        said.append(f"RL is worse than SFT beyond noise at {_words(worse)}.")
    if not better and not worse:
        least = changes["NDCG@10"]["detectable"] if "NDCG@10" in changes else None
        extra = f" With so many users, only a true change of about {least:.4f} in NDCG@10 would show." if least else ""
        said.append(f"At no cut-off is RL's change beyond noise.{extra}")
    said.append(_said_of_sharpness(changes))
    said += [*_said_of_levels(levels), *_said_of_slices(slices)]
    said += _said_of_lists(sft, rl)
    said += _said_of_training(log)
    return said


def _said_of_sharpness(changes: Mapping[str, Mapping[str, Any]]) -> str:
    if over_sharpened(changes):
        return (
            "The lists are over-sharpened: what RL gained at the top it lost in depth. Fewer steps, a larger KL weight or "
            "a reward that still counts lower ranks are the usual remedies."
        )
    if _lost_in_depth(changes):
        return (
            "The lists lost in depth without a gain beyond noise at the top: that is no trade, RL made them worse. A smaller "
            "learning rate or fewer steps come first."
        )
    reached = [name for name in _DEEPER if name in changes]
    if not reached:
        return f"The lists are too short for {_words(_DEEPER)}, so they do not tell whether RL lost in depth."
    return f"No sign of over-sharpening: no loss beyond noise at {_words(reached)}."


def _beyond_noise(rows: Sequence[Mapping[str, Any]], sign: int) -> list[Mapping[str, Any]]:
    """The rows whose change is beyond noise and of this sign."""
    return [row for row in rows if not row["change"]["noise"] and row["change"]["value"] * sign > 0]


def _said_of_levels(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    read = [row for row in levels if row["k"] in _LEVELS_READ]
    if not read:
        return []
    said = []
    for word, sign in (("better", 1), ("worse", -1)):
        rows = _beyond_noise(read, sign)
        if rows:
            shown = [f"{row['prefix']} in the top {row['k']} ({signed(row['change']['value'])})" for row in rows]
            said.append(f"Along the SID, RL is {word} beyond noise at {_words(shown)}.")
    if not said:
        return ["Along the SID, no change is beyond noise in the top 1, 10 or 50."]
    first = read[0]["prefix"]
    lost = any(row["prefix"] == first and row["change"]["high"] < 0 for row in read)
    if lost:
        said.append(f"A loss at {first} means that whole branches of the catalog fell out of the lists.")
    elif any(row["change"]["high"] < 0 for row in read):
        said.append(f"{first} is not lost, later codes are: the right branch stays in the lists, the item in it does not.")
    return said


def _said_of_slices(slices: Sequence[Mapping[str, Any]]) -> list[str]:
    if not slices:
        return []
    said = []
    for word, sign in (("gains", 1), ("loses", -1)):
        rows = _beyond_noise(slices, sign)
        if rows:
            shown = [f"{row['question']}: {row['answer']} ({signed(row['change']['value'])})" for row in rows]
            said.append(f"In {_SLICED}, RL {word} beyond noise on {_words(shown)}.")
    if not said:
        return [f"On none of the {len(slices)} parts of the split is the change in {_SLICED} beyond noise."]
    return [*said, f"Of {len(slices)} parts about one in twenty would look so by chance."]


def _said_of_lists(sft: Mapping[str, Any], rl: Mapping[str, Any]) -> list[str]:
    said = []
    before, after = sft.get("calibration"), rl.get("calibration")
    if before and after:
        first, last = before[-1], after[-1]
        trend = "more" if last["confidence"] > first["confidence"] else "less"
        said.append(
            f"RL is {trend} sure of its first recommendation: probability {first['confidence']:.3f} before, "
            f"{last['confidence']:.3f} after, right in {first['accuracy']:.3f} and {last['accuracy']:.3f} of the cases "
            f"(calibration error {first['error']:.3f}, then {last['error']:.3f})."
        )
    old, new = sft.get("exposure"), rl.get("exposure")
    if old and new and old["diversity"] is not None and new["diversity"] is not None and old["coverage"] is not None:
        trend = "narrower" if new["diversity"] < old["diversity"] else "no narrower"
        said.append(
            f"Its lists are {trend}: intra-list diversity {old['diversity']:.3f} before, {new['diversity']:.3f} after; all "
            f"lists together show {old['coverage']:.1%} of the catalog before, {new['coverage']:.1%} after."
        )
    return said


def _said_of_training(log: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    kl = [entry["kl"] for entry in log if isinstance(entry.get("kl"), int | float)]
    if kl:
        said.append(f"The model moved away from SFT by a KL divergence of {kl[-1]:.4f} at the end, {max(kl):.4f} at most.")
    told = [entry["groups_with_signal"] for entry in log if isinstance(entry.get("groups_with_signal"), int | float)]
    if told:
        share = 1 - sum(told) / len(told)
        said.append(f"On average {share:.0%} of the beam groups carried no signal: all their rewards were equal.")
    said += _said_of_diversity(log)
    return said


def _said_of_diversity(log: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for name, what in (("entropy", "entropy per token (nats)"), ("first_codes", "different first codes per group")):
        values = [entry[name] for entry in log if isinstance(entry.get(name), int | float)]
        if len(values) > 1:
            tenth = max(1, len(values) // 10)
            first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
            trend = "fell" if last < first else "did not fall"
            said.append(f"The diversity of the rollouts {trend}: {what} {first:.3f} at the beginning, {last:.3f} at the end.")
    return said


def tables(changes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The differences by metric family, for the page."""
    return [
        {"family": family, "rows": [{"name": name, **cell} for name, cell in changes.items() if name.startswith(f"{family}@")]}
        for family in ("HR", "NDCG", "MRR")
    ]
