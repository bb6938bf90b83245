"""The metrics and level tables once more, written independently: one list at a time, plain Python."""

import math
from fractions import Fraction


def rank(target, ranked):
    """0-based rank of the first entry that equals the target, None where there is none."""
    return next(
        (position for position, entry in enumerate(ranked) if entry is not None and tuple(entry) == tuple(target)),
        None,
    )


def metrics(records, k):
    """HR, NDCG and MRR at k of (target, ranked) records; an entry None is a text that is no SID."""
    hit = gain = reciprocal = 0.0
    for target, ranked in records:
        position = rank(target, ranked)
        if position is not None and position + 1 <= k:
            hit += 1
            gain += 1 / math.log(position + 2, 2)
            reciprocal += 1 / (position + 1)
    return hit / len(records), gain / len(records), reciprocal / len(records)


def tied(records, sizes, k):
    """Expected, best and worst HR and NDCG at k on items, where SID i of a list stands for sizes[i] items in unknown order."""
    totals = [0.0] * 6
    for (target, ranked), counts in zip(records, sizes, strict=True):
        position = rank(target, ranked)
        if position is None:
            continue
        start = sum(counts[:position])
        ranks = range(start, start + counts[position])
        gains = [1 / math.log(r + 2, 2) if r < k else 0.0 for r in ranks]
        hits = [1.0 if r < k else 0.0 for r in ranks]
        for offset, values in ((0, hits), (3, gains)):
            totals[offset] += sum(values) / len(values)
            totals[offset + 1] += values[0]
            totals[offset + 2] += values[-1]
    return [total / len(records) for total in totals]


def levels(records, cutoffs):
    """The independent, cumulative and drop-off tables as plain shares."""
    depth = len(records[0][0])
    independent, cumulative = {}, {}
    for k in cutoffs:
        alone, prefix = [0] * depth, [0] * depth
        for target, ranked in records:
            for level in range(depth):
                alone[level] += any(entry is not None and entry[level] == target[level] for entry in ranked[:k])
                prefix[level] += any(
                    entry is not None and tuple(entry[: level + 1]) == tuple(target[: level + 1]) for entry in ranked[:k]
                )
        independent[k] = [Fraction(count, len(records)) for count in alone]
        cumulative[k] = [Fraction(count, len(records)) for count in prefix]
    return independent, cumulative


def lost(records):
    """Share of records lost at each level: the list has the codes before it and not its own."""
    depth = len(records[0][0])
    counts = [0] * depth
    for target, ranked in records:
        deepest = max(
            (level for level in range(depth + 1) for entry in [*ranked, ()] if entry is not None and len(entry) >= level
             and tuple(entry[:level]) == tuple(target[:level])),
            default=0,
        )  # fmt: skip
        if deepest < depth:
            counts[deepest] += 1
    return [count / len(records) for count in counts]
