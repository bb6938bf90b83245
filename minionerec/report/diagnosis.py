"""What RL changed: the RL model against the SFT model it came from, per cut-off, per level, per slice, and a plain reading."""

from collections.abc import Mapping, Sequence
from typing import Any

from minionerec.config import CUTOFFS
from minionerec.eval.intervals import beyond_noise

_SHARPER = ("HR@1", "HR@3")
_DEEPER = ("HR@20", "HR@50")


def over_sharpened(differences: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether RL moved weight to the top of the lists at the cost of their depth.

    That is a gain at HR@1 or HR@3, and a loss at HR@20 or HR@50 that is beyond noise.
    """
    gained = any(differences[name]["value"] > 0 for name in _SHARPER if name in differences)
    lost = any(differences[name]["high"] < 0 for name in _DEEPER if name in differences)
    return gained and lost


def level_changes(sft: Mapping[str, Any], rl: Mapping[str, Any], cutoffs: Sequence[int]) -> list[dict[str, Any]]:
    """Cumulative level accuracy of both models per cut-off; each row has `k`, `prefix`, `sft`, `rl` and `change`."""
    rows = []
    for k in map(str, cutoffs):
        before, after = sft["levels"]["cumulative"][k], rl["levels"]["cumulative"][k]
        rows += [
            {"k": k, "prefix": prefix, "sft": before[prefix], "rl": after[prefix], "change": after[prefix] - before[prefix]}
            for prefix in before
        ]
    return rows


def slice_changes(sft: Mapping[str, Any], rl: Mapping[str, Any], metric: str = "HR@10") -> list[dict[str, Any]]:
    """One metric of both models per slice, with intervals; each row has `question`, `answer`, `share`, `sft` and `rl`."""
    rows = []
    for question, answers in (sft.get("slices") or {}).items():
        others = (rl.get("slices") or {}).get(question, {})
        rows += [
            {"question": question, "answer": answer, "share": part["share"], "sft": part[metric], "rl": others[answer][metric]}
            for answer, part in answers.items()
            if answer in others and metric in part
        ]
    return rows


def _words(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def reading(
    sft: Mapping[str, Any],
    rl: Mapping[str, Any],
    differences: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What the figures say, in plain sentences.

    Args:
        sft, rl: `metrics.json` of both.
        differences: RL minus SFT per metric, see `eval.compare.compare`.
        log: RL's training log.
    """
    ranked = [f"{family}@{k}" for family in ("HR", "NDCG") for k in CUTOFFS]
    better = [name for name in ranked if name in differences and differences[name]["low"] > 0]
    worse = [name for name in ranked if name in differences and differences[name]["high"] < 0]
    said = []
    if better:
        said.append(f"RL is better than SFT beyond noise at {_words(better)}.")
    if worse:
        said.append(f"RL is worse than SFT beyond noise at {_words(worse)}.")
    if not better and not worse:
        least = differences["NDCG@10"]["detectable"] if "NDCG@10" in differences else None
        extra = f" With so many users, only a true change of about {least:.4f} in NDCG@10 would show." if least else ""
        said.append(f"At no cut-off is RL's change beyond noise.{extra}")
    if over_sharpened(differences):
        said.append(
            "The lists are over-sharpened: what RL gained at the top it lost in depth. Fewer steps, a larger KL weight or "
            "a reward that still counts lower ranks are the usual remedies."
        )
    said += _said_of_lists(sft, rl)
    said += _said_of_training(log)
    return said


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
            f"lists together show {old['coverage']:.1%} of the catalogue before, {new['coverage']:.1%} after."
        )
    return said


def _said_of_training(log: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    kl = [entry["kl"] for entry in log if isinstance(entry.get("kl"), int | float)]
    if kl:
        said.append(f"The model moved away from SFT by a KL divergence of {kl[-1]:.4f} at the end, {max(kl):.4f} at most.")
    idle = [entry["frac_reward_zero_std"] for entry in log if isinstance(entry.get("frac_reward_zero_std"), int | float)]
    if idle:
        share = sum(idle) / len(idle)
        said.append(f"On average {share:.0%} of the beam groups carried no signal: all their rewards were equal.")
    return said


def tables(differences: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The differences by metric family, for the page; each cell says whether it is beyond noise."""
    found = []
    for family in ("HR", "NDCG", "MRR"):
        cells = {name: cell for name, cell in differences.items() if name.startswith(f"{family}@")}
        if cells:
            rows = [{"name": name, **cell, "beyond": beyond_noise(cell)} for name, cell in cells.items()]
            found.append({"family": family, "rows": rows})
    return found
