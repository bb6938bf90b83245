"""What a short number format does to a trained model's lists: the test split in float32 and in `eval.dtype`'s other formats.

Every format loads the run's model anew and decodes the same rows as `minionerec eval` does. The first table compares its lists
with those of float32, SID by SID: `same first`, `same 10` and `same list` are shares of the users whose first SID, first ten in
their order and whole list are equal; `overlap` is the share of float32's SIDs that are listed again; the last two columns are
differences of the scores of SIDs that both list, in nats. The second has the metrics on items, and the paired differences from
float32 with 95 % intervals. Seconds are those of decoding; on a CPU a short format need not be faster.

    python benchmarks/dtype.py --run runs/ml-100k
    python benchmarks/dtype.py --run runs/ml-100k --stage sft --dtypes bfloat16 float16 --rows 200 --device cuda:0
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from setting import machine, positive, table

from minionerec.config import DTYPES
from minionerec.eval.compare import compare
from minionerec.eval.decode import SplitDecoder
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import measure
from minionerec.recommend.recommender import Recommender
from minionerec.statistics.sampling import evenly_spaced

_METRICS = ("HR@1", "HR@10", "HR@50", "NDCG@10")
Scores = dict[tuple[int, ...], float]  # of a list, by SID, best first


def decode(recommender: Recommender, count: int | None) -> tuple[RankedLists, float]:
    """The lists of rows of the split, evenly spaced, and the seconds they took after a first batch."""
    decoder = SplitDecoder(recommender)
    rows = evenly_spaced(len(decoder), count or len(decoder))
    list(decoder.predict(rows[: recommender.config.batch_size]))
    started = time.perf_counter()
    predictions = list(decoder.predict(rows))
    return RankedLists.of(predictions), time.perf_counter() - started


def scores_of(lists: RankedLists, row: int) -> Scores:
    """A list as its SIDs with their scores, best first."""
    length = int(lists.lengths[row])
    assert lists.scores is not None
    return dict(zip(map(tuple, lists.sids[row, :length].tolist()), lists.scores[row, :length].tolist(), strict=True))


def differences(exact: RankedLists, rounded: RankedLists) -> list[float]:
    """The columns of the first table."""
    same: list[tuple[bool, bool, bool]] = []
    shared = listed = 0
    gaps: list[float] = []
    for row in range(len(exact)):
        ours, theirs = scores_of(exact, row), scores_of(rounded, row)
        first, second = list(ours), list(theirs)
        same.append((first[:1] == second[:1], first[:10] == second[:10], first == second))
        both = ours.keys() & theirs.keys()
        shared, listed = shared + len(both), listed + len(ours)
        gaps += [abs(ours[sid] - theirs[sid]) for sid in both]
    return [*np.mean(same, axis=0).tolist(), shared / listed, float(np.mean(gaps)), float(np.max(gaps))]


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--stage", choices=("sft", "rl"))
    options.add_argument("--dtypes", nargs="+", choices=DTYPES[1:], default=["bfloat16"])
    options.add_argument("--rows", type=positive, help="of the split, evenly spaced (default: all)")
    options.add_argument("--device", help="such as cuda:0 (default: this machine's accelerator, else cpu)")
    options.add_argument("--threads", type=positive, default=1)
    arguments = options.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    decoded: dict[str, RankedLists] = {}
    listed, metrics = [], []
    for dtype in ("float32", *arguments.dtypes):
        recommender = Recommender.load(arguments.run, arguments.stage, arguments.device, dtype)
        lists, seconds = decode(recommender, arguments.rows)
        decoded[dtype] = lists
        proven = 0.0 if lists.exact is None else float(np.mean(lists.exact))
        listed.append([dtype, seconds, proven, *differences(decoded["float32"], lists)])
        cells = measure(lists, resamples=40).headline
        names = [name for name in _METRICS if name in cells]  # those that the lists reach
        pairs = compare(decoded["float32"], lists, on="item") if dtype != "float32" else {}
        metrics.append([dtype, *(_cell(cells[name]["value"], pairs.get(name)) for name in names)])
    config = recommender.config
    print(
        f"{machine()}; {arguments.run}, {len(lists)} rows of {config.split}, {config.num_beams} beams, "
        f"{recommender.model.device}"
    )
    header = "format|seconds|proven|same first|same 10|same list|overlap|mean difference|largest difference"
    table(header.split("|"), listed)
    print()
    table(["format", *names], metrics)


def _cell(value: float, difference: dict | None) -> str:
    if difference is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({difference['value']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}])"


if __name__ == "__main__":
    main()
