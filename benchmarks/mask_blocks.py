"""What FlexAttention could skip: the empty blocks in the masks of packed rows, and what they weigh in a training step.

FlexAttention computes attention in blocks of 128 x 128 and skips those in which no token may see another. Attention under a
dense mask computes all of them. Counted on a CPU, in the rows that training packs of Industrial's training rows:

- SFT: micro-batches of 32 trees, histories alone and the three default tasks, in rows of 512 to 4,096 (`sft.row_tokens`);
- GRPO: 16 prompts x 16 SIDs in the rows of `TreeGRPOTrainer`, with the prompts of the data and with random ones of 200 tokens.
  SIDs drawn at random stand for rollouts. Real rollouts share more of their beginnings, so their rows are shorter.

Shares are of the multiplications of a forward pass; a backward pass has twice as many of both kinds. The head is left out,
which makes attention's share larger than it is. "Saved at best" is attention in empty blocks: it takes for granted that a block
costs no more than under a dense mask. The last column has all that is left with FlexAttention over the least without it.

    python benchmarks/mask_blocks.py [--data.path FOLDER]             # or --run RUN, for other data and SIDs
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from setting import AMAZON, SIZES, machine, positive, table
from sft_step import TASKS, industrial, prepared

from minionerec.config import ModelConfig, TaskName
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.sft.trees import build_trees, examples_by_task
from minionerec.tree import Branch, TreeBatch, pack

BLOCK = 128
BUDGETS = (512, 1024, 2048, 4096)
TREES = 32  # of a micro-batch, in the presets of SmolLM2
PROMPTS, GROUP = 16, 16  # of a GRPO step
SHAPES = {"0.5b": SIZES["0.5b"], "135m": {"layers": 30, "hidden": 576, "intermediate": 1536, "heads": 9, "kv_heads": 3}}


class Blocks(NamedTuple):
    """Counts over rows.

    Attributes:
        positions: padding included.
        pairs: of positions of the same row, padded to whole blocks.
        blocks: of all rows.
        above: blocks above the diagonal, which any causal kernel skips.
        empty: blocks in which no token sees another, those above the diagonal among them.
    """

    positions: int
    pairs: int
    blocks: int
    above: int
    empty: int

    @classmethod
    def of(cls, batch: TreeBatch, block: int = BLOCK) -> "Blocks":
        """Count those of a batch."""
        rows, length = batch.ends.shape
        side = -(-length // block)
        empty = 0
        for row in range(rows):  # one dense mask at a time
            sees = torch.zeros(side * block, side * block, dtype=torch.bool)
            columns = torch.arange(length)
            sees[:length, :length] = (columns <= columns[:, None]) & (columns[:, None] < batch.ends[row])
            empty += int((~sees.view(side, block, side, block).any(3).any(1)).sum())
        above = rows * side * (side - 1) // 2
        return cls(rows * length, rows * (side * block) ** 2, rows * side**2, above, empty)


def total(counts: Sequence[Blocks]) -> Blocks:
    """The sum over batches."""
    return Blocks(*map(sum, zip(*counts, strict=True)))


def multiplications(counts: Blocks, size: str, share: float = 1.0) -> tuple[float, float]:
    """Those of a forward pass: of the layers' weights, and of attention in a share of the blocks."""
    sizes = SHAPES[size]
    hidden, heads = sizes["hidden"], sizes["heads"]
    width = hidden // heads
    of_layer = 2 * hidden * hidden + 2 * hidden * sizes["kv_heads"] * width + 3 * hidden * sizes["intermediate"]
    return sizes["layers"] * of_layer * counts.positions, sizes["layers"] * 2 * heads * width * share * counts.pairs


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data.path", dest="data", type=Path, default=AMAZON, help="Industrial's files")
    options.add_argument("--run", type=Path, help="a run whose data and SIDs are taken, instead")
    options.add_argument("--batches", type=positive, default=8, help="micro-batches of each kind")
    arguments = options.parse_args(argv)
    dataset, index = prepared(arguments.run) if arguments.run else industrial(arguments.data)
    sizes = ModelConfig(hidden_size=32, intermediate_size=32, layers=1, heads=1, vocabulary=8192)  # for its tokenizer
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    prompts = Prompts(dataset, index, tokenizer)
    print(f"{machine()}; {len(dataset.train):,} histories; {arguments.batches} batches of each kind", flush=True)

    chance = random.Random(0)
    batches: dict[str, list[list[TreeBatch]]] = {}  # by kind, a list for each budget of rows
    histories: Sequence[TaskName] = TASKS[:1]
    for name, tasks in (("SFT, histories", histories), ("SFT, three tasks", TASKS)):
        trees = build_trees(examples_by_task(prompts, tasks, "train", 10), 10).trees
        micro = [
            [branch for tree in chance.sample(trees, min(TREES, len(trees))) for branch in tree]
            for _ in range(arguments.batches)
        ]
        batches[name] = [[pack(branches, row_tokens=budget) for branches in micro] for budget in BUDGETS]
    asked = [example.prompt for example in prompts.examples(histories[0], "train")]
    sids = [list(sid) for sid in prompts.sid_tokens]
    longer = [[chance.randrange(1000) for _ in range(200)] for _ in range(PROMPTS * arguments.batches)]
    for name, pool in (("GRPO", asked), ("GRPO, prompts of 200", longer)):
        groups = []
        for _ in range(arguments.batches):
            some = chance.sample(pool, min(PROMPTS, len(pool)))
            branches = [Branch(prompt, sid) for prompt in some for sid in chance.sample(sids, min(GROUP, len(sids)))]
            budget = max(map(len, some)) + (GROUP + 1) * (max(map(len, sids)) - 1)
            groups.append(pack(branches, row_tokens=budget))
        batches[name] = [groups]

    rows = []
    for name, by_budget in batches.items():
        counts = [total([Blocks.of(batch) for batch in some]) for some in by_budget]
        best = {size: min(sum(multiplications(one, size)) for one in counts) for size in SHAPES}
        for some, one in zip(by_budget, counts, strict=True):
            shares = []
            for size in SHAPES:
                weights, dense = multiplications(one, size)
                _, left = multiplications(one, size, 1 - one.empty / one.blocks)
                shares += [dense / (weights + dense), (dense - left) / (weights + dense), (weights + left) / best[size]]
            lengths = [batch.ends.shape[1] for batch in some]
            row = [name, f"{min(lengths)}-{max(lengths)}", one.positions, one.empty / one.blocks]
            rows.append([*row, (one.empty - one.above) / max(1, one.blocks - one.above), *shares])
    header = ["rows of", "tokens", "positions", "empty", "empty on and below the diagonal"]
    for size in SHAPES:
        header += [f"{size}: attention's share", "saved at best", "against the best dense rows"]
    table(header, rows)


if __name__ == "__main__":
    main()
