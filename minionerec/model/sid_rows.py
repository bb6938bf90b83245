"""Where the rows of new SID tokens begin, in the embedding and in an untied head alike.

`mean`: around the mean of the old rows, with the old rows' spread per dimension. `random`: as the architecture draws its own
weights, normal with `initializer_range`. `text`: at the centroids of the codebooks in the model's own embedding space. A text
encoder's vectors have another width and other axes, so the codebooks are fitted again where the rows live: an item's vector is
the mean of its title's token rows; a code of the first level gets the mean of the items that carry it, as a deviation from the
mean of all, a code of a later level the mean of what the levels before left over. So the rows of a SID add up to its title, as
the centroids of residual quantisation add up to its text vector, whatever made the SIDs. Means shrink with the number of items,
so each level is scaled to the spread of the old rows; a tenth of that spread is added as noise, so that codes with equal titles
can be told apart. A code that no item carries, or a level without any signal, begins as under `mean`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from minionerec.errors import ConfigError
from minionerec.sid.index import SidIndex

SidInit = Literal["text", "mean", "random"]
_NOISE = 0.1


def around_the_mean(known: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Rows (new, width) with mean and spread per dimension of the known ones (old, width)."""
    return known.mean(0) + noise * known.std(0)


def from_titles(known: torch.Tensor, noise: torch.Tensor, titles: Sequence[Sequence[int]], index: SidIndex) -> torch.Tensor:
    """Rows of all codes, level by level, (codes, width); see the file's header.

    Args:
        known: rows of the old tokens, (old, width) float32.
        noise: standard normal, (codes, width).
        titles: token ids of each item's title, below `old`; an empty one counts as the average title.

    Raises:
        ConfigError: no item has a title.
    """
    given = [number for number, tokens in enumerate(titles) if len(tokens)]
    if not given:
        raise ConfigError("model.sid_init is text, but no item has a title; choose mean or random.")
    means = torch.stack([known[torch.tensor(titles[number])].mean(0) for number in given])
    left = torch.zeros(len(titles), known.shape[1])
    left[given] = means - means.mean(0)
    usual, spread = around_the_mean(known, noise), (known - known.mean(0)).square().mean().sqrt()
    levels: list[torch.Tensor] = []
    start = 0
    for codes, size in zip(torch.from_numpy(index.codes).long().T, index.codebook_sizes, strict=True):
        carried = codes >= 0
        count = codes[carried].bincount(minlength=size)[:, None]
        centroids = torch.zeros(size, known.shape[1]).index_add_(0, codes[carried], left[carried]) / count.clamp(min=1)
        left[carried] -= centroids[codes[carried]]
        used = count > 0
        signal = centroids[used[:, 0]].square().mean().sqrt()
        scaled = known.mean(0) + centroids * (spread / signal.clamp(min=1e-12))
        little = _NOISE * noise[start : start + size] * known.std(0)
        levels.append(torch.where(used & (signal > 1e-4 * spread), scaled + little, usual[start : start + size]))
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
        a function of the old rows (old, width) and the wanted places in `index.token_strings()`, giving (wanted, width).
    """

    def rows(known: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
        if init == "text":
            noise = torch.randn(sum(index.codebook_sizes), known.shape[1], generator=generator)
            return from_titles(known, noise, titles, index)[list(wanted)]
        noise = torch.randn(len(wanted), known.shape[1], generator=generator)
        return noise * scale if init == "random" else around_the_mean(known, noise)

    return rows
