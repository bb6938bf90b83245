"""Yes or no about the candidates of users: one prefix tree against one prompt after the other, same scores.

Claim: at 10 candidates a user and 20 items of history, scoring on trees computes at least 5 times fewer tokens than one prompt
for each pair and takes at most a quarter of the time, with the 4 x 256 model (random weights). Titles have 4 to 12 tokens;
system, suffix and the words between are as long as ours. Both sides get the same token ids:

- tree: `scoring.yes_no.yes_over_no`, the prompts of some users at once;
- padded: the obvious way, the same prompts as batches with padding on the left, and the logits of the last token. Prompts are
  sorted by length, and the batch is the fastest of several sizes that were tried.

Tokens are those that are computed, padding included. The run stops unless the scores agree within 1e-4. Every figure is the
median over fresh processes, both sides in turn; seconds are CPU time of the one thread, the shortest of all repeats.

    python benchmarks/yes_no.py                                  # two minutes
    python benchmarks/yes_no.py --model tiny --users 4 --repeats 1
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from setting import SIZES, Measured, alternate, machine, parser, positive, random_model, report, table
from transformers import PreTrainedModel

from minionerec.scoring.yes_no import yes_over_no
from minionerec.tree import Branch, pack
from minionerec.tree.forward import left_pad

SIDES = ("tree", "padded")
ANSWERS = (5, 6)
_SYSTEM, _MARKS, _SUFFIX = 40, 4, 8  # tokens: of the words before, of a number in brackets, of the words behind
_TITLE = (4, 12)
_BATCH = 16  # prompts of a padded batch
_AT_ONCE = 8  # users of a tree


def prompts_of(users: int, candidates: int, history: int, vocabulary: int) -> list[list[list[int]]]:
    """Random prompts, (users, candidates) lists of token ids; a user's share all before the candidate."""
    rng = np.random.default_rng(0)

    def words(count: int) -> list[int]:
        return rng.integers(10, vocabulary, count).tolist()

    def title() -> list[int]:
        return words(int(rng.integers(_TITLE[0], _TITLE[1] + 1)))

    system, suffix, prompts = words(_SYSTEM), words(_SUFFIX), []
    for _ in range(users):
        listed = [token for _ in range(history) for token in (*words(_MARKS), *title())]
        prefix = [*system, *listed, *suffix]
        prompts.append([[*prefix, *title(), *suffix] for _ in range(candidates)])
    return prompts


@torch.no_grad()
def on_trees(model: PreTrainedModel, prompts: Sequence[Sequence[list[int]]]) -> torch.Tensor:
    """The scores of all pairs, users in batches."""
    parts = []
    for start in range(0, len(prompts), _AT_ONCE):
        flat = [prompt for of_user in prompts[start : start + _AT_ONCE] for prompt in of_user]
        parts.append(yes_over_no(model, flat, ANSWERS, row_tokens=512))
    return torch.cat(parts)


@torch.no_grad()
def padded(model: PreTrainedModel, prompts: Sequence[Sequence[list[int]]]) -> torch.Tensor:
    """The scores of all pairs, every prompt for itself, in batches of equal length as far as possible."""
    flat = [prompt for of_user in prompts for prompt in of_user]
    order = sorted(range(len(flat)), key=lambda number: len(flat[number]))
    scores = torch.empty(len(flat))
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        ids, mask = left_pad([flat[number] for number in chosen], 0)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        last = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False).logits[
            :, -1
        ]
        scores[chosen] = last[:, ANSWERS[0]] - last[:, ANSWERS[1]]
    return scores


def counted(prompts: Sequence[Sequence[list[int]]], side: str) -> int:
    """The tokens that a side computes."""
    if side == "padded":
        lengths = sorted(len(prompt) for of_user in prompts for prompt in of_user)
        batches = [lengths[start : start + _BATCH] for start in range(0, len(lengths), _BATCH)]
        return sum(max(batch) * len(batch) for batch in batches)
    total = 0
    for start in range(0, len(prompts), _AT_ONCE):
        flat = [prompt for of_user in prompts[start : start + _AT_ONCE] for prompt in of_user]
        total += pack([Branch(prompt, [answer]) for prompt in flat for answer in ANSWERS], row_tokens=512).input_ids.numel()
    return total


def measure(side: str, options: argparse.Namespace) -> Measured:
    """One side in this process: tokens, seconds, and its scores."""
    torch.set_num_threads(1)
    model = random_model(options.model, 0)
    prompts = prompts_of(options.users, options.candidates, options.history, SIZES[options.model]["vocabulary"])
    run = on_trees if side == "tree" else padded
    run(model, prompts[:1])

    def timed() -> tuple[float, torch.Tensor]:
        began = time.process_time()
        scores = run(model, prompts)
        return time.process_time() - began, scores

    runs = [timed() for _ in range(options.runs)]
    return {"tokens": counted(prompts, side), "seconds": min(seconds for seconds, _ in runs)}, {"scores": runs[-1][1]}


def check(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference between two scores of a pair.

    Raises:
        SystemExit: it is more than rounding.
    """
    difference = float((ours - theirs).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"The scores differ: by {difference:.1e}.")
    return difference


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, SIDES)
    options.add_argument("--model", choices=SIZES, default="small")
    options.add_argument("--runs", type=positive, default=2, help="of a process")
    options.add_argument("--users", type=positive, default=32)
    options.add_argument("--candidates", type=positive, default=10)
    options.add_argument("--history", type=positive, default=20)
    arguments = options.parse_args(argv)
    if arguments.only:
        report(arguments, measure(arguments.only, arguments))
        return
    names = ("model", "users", "candidates", "history", "runs")
    passed = [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    measured = alternate(__file__, SIDES, passed, arguments.repeats)
    (tree, scores), (plain, plain_scores) = (measured[side] for side in SIDES)
    difference = check(scores["scores"], plain_scores["scores"])
    print(f"{machine()}; model {arguments.model}, {arguments.users} users, largest difference of two scores {difference:.1e}\n")
    header = ["candidates", "history", "tokens, tree", "padded", "ratio", "seconds, tree", "padded", "ratio"]
    tokens = [f"{tree['tokens']:,.0f}", f"{plain['tokens']:,.0f}", f"{plain['tokens'] / tree['tokens']:.1f}"]
    seconds = [f"{tree['seconds']:.2f}", f"{plain['seconds']:.2f}", f"{plain['seconds'] / tree['seconds']:.1f}"]
    table(header, [[arguments.candidates, arguments.history, *tokens, *seconds]])


if __name__ == "__main__":
    main()
