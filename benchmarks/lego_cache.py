"""Content recommenders with caches and without: scores of a run's test pairs by a trained recipe, same scores.

Claim: with every item and every user encoded once, scoring takes at most a tenth of the time that it takes without caches. All
sides are the same trained model:

- cached: `legommenders.caches.CachedScores`, from empty caches;
- batches: `--batch` pairs at once, each distinct item of a batch encoded once, as our training does;
- plain: `--batch` pairs at once, each encoding its own candidate and its own history.

The run stops unless all scores agree within 1e-5 of the largest. Every figure is the median over fresh processes, the sides in
turn; seconds are CPU time of the one thread, the shortest of all repeats, without reading the data and the model.

    minionerec lego --config ml-100k-lego
    python benchmarks/lego_cache.py --run runs/ml-100k-lego                # two minutes
    python benchmarks/lego_cache.py --run runs/ml-100k-lego --recipe nrms  # another trained one
"""

import argparse
import time

import numpy as np
import torch
from setting import Measured, alternate, machine, parser, positive, report, table

from minionerec.config import Config
from minionerec.data.history_rows import HistoryRows
from minionerec.legommenders.caches import CachedScores, uncached_pairs
from minionerec.legommenders.examples import histories
from minionerec.legommenders.model import Legommender
from minionerec.legommenders.train import load_lego

SIDES = ("cached", "batches", "plain")
_TOLERANCE = 1e-5  # of the largest score


@torch.no_grad()
def plain_pairs(model: Legommender, rows: HistoryRows, batch: int, device: torch.device) -> np.ndarray:
    """The logit of each row's candidate, (rows,) float32, each row with vectors of its own."""
    model.eval()
    scores = []
    for start in range(0, len(rows), batch):
        part = rows.take(np.arange(start, min(start + batch, len(rows))))
        shown = histories(part).to(device)
        candidates = torch.from_numpy(part.target.astype(np.int64) - 1)[:, None].to(device)
        items = torch.cat([shown.clamp(min=0), candidates], 1)
        vectors = model.item_vectors(items.flatten()).unflatten(0, items.shape)
        users = model.users(shown, None if model.reads_texts else vectors[:, :-1])
        scores.append(model.scores(users, vectors[:, -1:], shown >= 0)[:, 0].float())
    return torch.cat(scores).cpu().numpy()


def measure(side: str, options: argparse.Namespace) -> Measured:
    """One side in this process: pairs, seconds, and its scores."""
    torch.set_num_threads(1)
    model, task, _ = load_lego(Config(out=options.run), options.recipe)
    rows, items, cpu = task.examples.rows["test"], task.examples.items, torch.device("cpu")

    def timed() -> tuple[float, np.ndarray]:
        began = time.process_time()
        if side == "cached":
            scores = CachedScores(model, items, cpu).pairs(rows)
        else:
            scores = (uncached_pairs if side == "batches" else plain_pairs)(model, rows, options.batch, cpu)
        return time.process_time() - began, scores

    runs = [timed() for _ in range(options.runs)]
    figures = {"pairs": len(rows), "items": items, "seconds": min(seconds for seconds, _ in runs)}
    return figures, {"scores": torch.from_numpy(runs[-1][1])}


def check(cached: torch.Tensor, plain: torch.Tensor) -> float:
    """The largest difference between two scores of a pair, relative to the largest score.

    Raises:
        SystemExit: it is more than rounding.
    """
    difference = float((cached - plain).abs().max() / plain.abs().max())
    if not difference <= _TOLERANCE:
        raise SystemExit(f"The scores differ: by {difference:.1e} of the largest.")
    return difference


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, SIDES)
    options.add_argument("--run", required=True, help="folder of a run with a recipe that is trained on its pairs")
    options.add_argument("--recipe", default="naml", help="its name, as in lego/pairs/")
    options.add_argument("--batch", type=positive, default=64, help="pairs that the plain side scores at once")
    options.add_argument("--runs", type=positive, default=3, help="of a process")
    arguments = options.parse_args(argv)
    if arguments.only:
        report(arguments, measure(arguments.only, arguments))
        return
    names = ("run", "recipe", "batch", "runs")
    passed = [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    measured = alternate(__file__, SIDES, passed, arguments.repeats)
    (cached, _), (batches, _), (plain, plain_scores) = (measured[side] for side in SIDES)
    difference = max(check(tensors["scores"], plain_scores["scores"]) for _, tensors in measured.values())
    print(f"{machine()}; largest relative difference of two scores {difference:.1e}\n")
    seconds = [f"{cached['seconds']:.3f}"]
    for side in (batches, plain):
        seconds += [f"{side['seconds']:.2f}", f"{side['seconds'] / cached['seconds']:.1f}"]
    counts = [f"{cached['pairs']:,.0f}", f"{cached['items']:,.0f}"]
    table(
        ["recipe", "pairs", "items", "cached s", "batches s", "ratio", "plain s", "ratio"],
        [[arguments.recipe, *counts, *seconds]],
    )


if __name__ == "__main__":
    main()
