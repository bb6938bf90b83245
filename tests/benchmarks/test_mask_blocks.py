"""Counting what FlexAttention could skip."""

import random

import pytest

from minionerec.tree import Branch, pack


def test_blocks_are_those_of_the_mask(script):
    mask_blocks = script("mask_blocks")
    chance = random.Random(0)
    branches = [Branch([1, 2 + tree, *(chance.randrange(9) for _ in range(5))], [4, 5]) for tree in range(6)]
    batch = pack(branches, row_tokens=24)
    rows, length = batch.input_ids.shape
    counts = mask_blocks.Blocks.of(batch, block=4)
    side = -(-length // 4)
    seen = {(row, token // 4, other // 4) for row, _, token, other in batch.ancestors.nonzero().tolist()}
    assert counts == (
        rows * length,
        rows * (4 * side) ** 2,
        rows * side**2,
        rows * side * (side - 1) // 2,
        counts.blocks - len(seen),
    )
    assert counts.above < counts.empty < counts.blocks and length % 4
    assert mask_blocks.total([counts, counts]).empty == 2 * counts.empty


def test_attention_weighs_more_in_longer_rows(script):
    mask_blocks = script("mask_blocks")
    shares = []
    for length in (512, 4096):
        weights, attention = mask_blocks.multiplications(mask_blocks.Blocks(length, length**2, 1, 0, 0), "0.5b")
        shares.append(attention / (weights + attention))
    assert shares == pytest.approx([0.058, 0.330], abs=1e-3)
    assert mask_blocks.multiplications(mask_blocks.Blocks(9, 81, 1, 0, 0), "135m", share=0.0)[1] == 0
