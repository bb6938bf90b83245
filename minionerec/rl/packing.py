"""One packed batch for all passes over the same rollouts: those of the reference model, the old policy and the policy.

TRL calls for log-probabilities of padded rows. Each call would sort and pack its rows on the CPU while the GPU waits. The
passes of a step have the same rows, in another order, because groups are shuffled before they become micro-batches. So the
packed batch is kept until the next rollouts, and only its labels are listed in the order of the call.
"""

from collections.abc import Callable

import numpy as np
import torch

from minionerec.tree import Branch, TreeBatch


class PackedRows:
    """Packed batches of the rollouts of now, by the rows that they hold.

    Args:
        pack: packs branches, in the order of the rows, on the model's device.
        is_sid: completions are SIDs of the trie that `pack` normalises over.
    """

    def __init__(self, pack: Callable[[list[Branch]], TreeBatch], is_sid: bool) -> None:
        self._pack, self._is_sid = pack, is_sid
        self._kept: dict[tuple[int, bytes], tuple[list[int], TreeBatch]] = {}  # with the rows' places in sorted order

    def clear(self) -> None:
        """Let go of the batches: other rollouts follow."""
        self._kept.clear()

    def branches(self, ids: np.ndarray, mask: np.ndarray, prompt_columns: int) -> list[Branch]:
        """A branch for each of TRL's padded rows, without the padding.

        Args:
            ids, mask: (rows, columns) token ids, and bool, False on padding.
            prompt_columns: how many columns the prompts take.
        """
        return [
            Branch(
                row[:prompt_columns][real[:prompt_columns]], row[prompt_columns:][real[prompt_columns:]], is_sid=self._is_sid
            )
            for row, real in zip(ids, mask, strict=True)
        ]

    def batch(self, ids: np.ndarray, mask: np.ndarray, prompt_columns: int) -> TreeBatch:
        """The packed batch of some rows, as packing them in this order would make it.

        Args:
            ids, mask, prompt_columns: see `branches`.
        """
        keys = [row.tobytes() + real.tobytes() for row, real in zip(ids, mask, strict=True)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        key = prompt_columns, b"".join(keys[row] for row in order)
        if key not in self._kept:
            self._kept[key] = order, self._pack(self.branches(ids, mask, prompt_columns))
        packed_order, batch = self._kept[key]
        if packed_order == order:
            return batch
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[packed_order] = order  # the same row, then and now
        return batch.renumbered(torch.from_numpy(numbers))
