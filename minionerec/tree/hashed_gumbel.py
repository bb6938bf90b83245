"""Gumbel noise that depends on a seed per prompt and on the node of the trie, and on nothing else.

A generator's draws depend on the shape of the batch, so a prompt would get different noise in another batch. Here the noise
of a node is a hash of (seed, level, node): equal in any batch, on any number of devices and on any device.
"""

import torch

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # as signed 64-bit integers


def _mix(state: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): int64 to int64, a bijection."""
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in


def combine(seeds: torch.Tensor, numbers: torch.Tensor | int) -> torch.Tensor:
    """New seeds from seeds and numbers, int64, broadcast."""
    return _mix(_mix(seeds + _GOLDEN) + torch.as_tensor(numbers, device=seeds.device) * _GOLDEN)


def gumbel(seeds: torch.Tensor, level: int, nodes: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise of nodes, float32, the shape of `nodes`.

    Args:
        seeds: int64, one per leading index of `nodes`.
        level: of the nodes.
        nodes: int64 node numbers.
    """
    level_seeds = combine(seeds, level).view(*seeds.shape, *[1] * (nodes.dim() - seeds.dim()))
    # The upper 53 bits, as many as a double holds, in the middle of their interval: strictly between 0 and 1.
    uniform = (_shift(combine(level_seeds, nodes), 11).double() + 0.5) * 2.0**-53
    return (-(-uniform.log()).log()).float()
