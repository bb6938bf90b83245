"""Packing prefix trees on the CPU, beside a GPU that waits for them: whole batches at once against branch by branch.

Claim: what a GRPO step or an SFT micro-batch packs takes at most two fifths of the time that it took branch by branch. The
peer is the packing of earlier versions, which tests keep as the slow and obvious way (`tests/tree/plain_pack.py`). Both get the
same branches over the Industrial catalog; the run stops unless all tensors are equal. GRPO has arrays for us and lists
for the peer, as the trainer gives and gave them. Figures are medians of CPU time, both in turn, in one process and thread.

    python benchmarks/packing.py
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from setting import industrial_codes, machine, table

from minionerec.tree import Branch, CatalogTrie, TreeBatch, pack
from tests.tree.plain_pack import pack as plain_pack

GROUPS = ((16, 16, 200), (64, 16, 64), (16, 16, 512))  # prompts, SIDs each, tokens of a prompt
HISTORIES = (32, 10, 11)  # trees, examples each, tokens that one example's history is longer than the last one's


def grpo_branches(codes: np.ndarray, prompts: int, group: int, length: int) -> list[Branch]:
    """Groups of SIDs after random prompts."""
    rng = np.random.default_rng(0)
    branches = []
    for _ in range(prompts):
        prompt = rng.integers(0, 8192, length)
        branches += [Branch(prompt, codes[item], is_sid=True) for item in rng.integers(0, len(codes), group)]
    return branches


def sft_branches(codes: np.ndarray, trees: int, examples: int, step: int) -> list[Branch]:
    """Histories that grow from one example of a tree to the next."""
    rng = np.random.default_rng(0)
    branches = []
    for _ in range(trees):
        history = rng.integers(0, 8192, step * examples)
        branches += [
            Branch(np.append(history[: step * count], [3, 5]), codes[rng.integers(len(codes))], is_sid=True)
            for count in range(1, examples + 1)
        ]
    return branches


def cpu_seconds(run: Callable[[], Any], seconds: float) -> list[float]:
    """The CPU seconds of each of as many runs as fit into `seconds`, one at least; other work on the machine does not count."""
    times: list[float] = []
    while not times or sum(times) + times[-1] < seconds:
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return times


def check_equal(batch: TreeBatch, expected: dict[str, torch.Tensor | int]) -> None:
    """Stop if the two differ.

    Raises:
        SystemExit: they do.
    """
    for name, value in expected.items():
        found = getattr(batch, name)
        if not (torch.equal(found, value) if torch.is_tensor(value) else found == value):
            raise SystemExit(f"The batches differ in {name}.")


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--seconds", type=float, default=2.0, help="of CPU time for each side of each batch")
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    codes, catalog = industrial_codes()
    codes, trie = codes + 8192, CatalogTrie.from_codes(codes + 8192)
    print(f"{machine()}; {catalog}")
    batches = {f"GRPO, {p} x {g}, prompt {t}": (grpo_branches(codes, p, g, t), t + (g + 1) * 2) for p, g, t in GROUPS}
    batches["SFT, {} trees of {} histories".format(*HISTORIES[:2])] = sft_branches(codes, *HISTORIES), 1024
    rows = []
    for name, (branches, row_tokens) in batches.items():
        listed = [Branch(branch.prompt.tolist(), branch.completion.tolist(), is_sid=True) for branch in branches]
        check_equal(pack(branches, row_tokens=row_tokens, trie=trie), plain_pack(listed, row_tokens=row_tokens, trie=trie))
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(2):  # in turn
            ours += cpu_seconds(partial(pack, branches, row_tokens=row_tokens, trie=trie), arguments.seconds / 2)
            theirs += cpu_seconds(partial(plain_pack, listed, row_tokens=row_tokens, trie=trie), arguments.seconds / 2)
        rows.append([name, 1e3 * median(ours), 1e3 * median(theirs), median(theirs) / median(ours)])
    table(["batch", "ours, CPU ms", "branch by branch, CPU ms", "times faster"], rows)


if __name__ == "__main__":
    main()
