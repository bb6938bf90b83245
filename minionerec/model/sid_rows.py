"""Initial rows of new SID tokens, in the embedding and in an untied head alike.

`mean`: normal, with the old rows' mean and standard deviation per dimension. `random`: as the architecture draws its own
weights, normal with `initializer_range`. `text`: the centroids of the codebooks in the model's own embedding space, as follows.

A text encoder's vectors have another width and other axes, so the codebooks are fitted again in the embedding space. An item's
vector is the mean of its title's token rows. A code of the first level gets the mean of the items that carry it, as a deviation
from the mean of all; a code of a later level gets the mean of what the levels before left over. So the rows of a SID add up to
its title, as the centroids of residual quantisation add up to its text vector, whatever method made the SIDs. Means shrink with
the number of items, so each level is scaled to the standard deviation of the old rows. A tenth of that is added as noise, so
that codes with equal titles can be told apart. A code that no item carries, or a level without any signal, is initialised as
under `mean`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from minionerec.errors import ConfigError
from minionerec.sid.index import SidIndex

SidInit = Literal["text", "mean", "random"]
_NOISE = 0.1


def around_the_mean(old_rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Rows (new, width) whose mean and standard deviation per dimension are those of the old rows (old, width)."""
    return old_rows.mean(0) + noise * old_rows.std(0)


def from_titles(old_rows: torch.Tensor, noise: torch.Tensor, titles: Sequence[Sequence[int]], index: SidIndex) -> torch.Tensor:
    """Rows of all codes, level by level, (codes, width); see the file's header.

    Args:
        old_rows: rows of the old tokens, (old, width) float32.
        noise: standard normal, (codes, width).
        titles: token ids of each item's title, below `old`; an empty one counts as the average title.

    Raises:
        ConfigError: no item has a title.
    """
    titled = [item for item, tokens in enumerate(titles) if len(tokens)]
    if not titled:
        raise ConfigError("model.sid_init is text, but no item has a title; choose mean or random.")
    means = torch.stack([old_rows[torch.tensor(titles[item])].mean(0) for item in titled])
    residual = torch.zeros(len(titles), old_rows.shape[1])
    residual[titled] = means - means.mean(0)
    fallback, std = around_the_mean(old_rows, noise), (old_rows - old_rows.mean(0)).square().mean().sqrt()
    levels: list[torch.Tensor] = []
    start = 0
    for codes, size in zip(torch.from_numpy(index.codes).long().T, index.codebook_sizes, strict=True):
        # 1. A code's centroid is the mean of its items' residuals, which then lose it.
        has_code = codes >= 0  # a short SID has none at this level
        count = codes[has_code].bincount(minlength=size)[:, None]
        centroids = torch.zeros(size, old_rows.shape[1]).index_add_(0, codes[has_code], residual[has_code])
        centroids = centroids / count.clamp(min=1)
        residual[has_code] -= centroids[codes[has_code]]
        # 2. Scale the level to the old rows, and add noise.
        used = count > 0
        signal = centroids[used[:, 0]].square().mean().sqrt()
        scaled = old_rows.mean(0) + centroids * (std / signal.clamp(min=1e-12))
        level_noise = _NOISE * noise[start : start + size] * old_rows.std(0)
        # 3. Without items or signal there is nothing to scale but rounding.
        levels.append(torch.where(used & (signal > 1e-4 * std), scaled + level_noise, fallback[start : start + size]))
        start += size
    return torch.cat(levels)


def new_rows(
    init: SidInit, index: SidIndex, titles: Sequence[Sequence[int]], scale: float, generator: torch.Generator
) -> Callable[[torch.Tensor, Sequence[int]], torch.Tensor]:
    """A function that gives the rows of some of the index's tokens.

    Args:
        titles: token ids of the items' titles, for `text`.
        scale: standard deviation for `random`.

    Returns:
        a function of the old rows (old, width) and of positions in `index.token_strings()`, giving (positions, width).
    """

    def rows(old_rows: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        if init == "text":
            noise = torch.randn(sum(index.codebook_sizes), old_rows.shape[1], generator=generator)
            return from_titles(old_rows, noise, titles, index)[list(positions)]
        noise = torch.randn(len(positions), old_rows.shape[1], generator=generator)
        return noise * scale if init == "random" else around_the_mean(old_rows, noise)

    return rows
