"""A prompt cache for tries of long paths, such as those of titles: most of what a search computes there is soon of no use.

A title may have a hundred tokens, most have thirty, and a search keeps as many beams at each. So a text that has ended is not
computed any further, and a tree token that no open beam descends from leaves the cache: each level costs what is still open.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch

from minionerec.tree.forward import attention_bias
from minionerec.tree.prompt_cache import PromptCache
from minionerec.tree.trie import NO_TOKEN

LONG = 16  # levels; SIDs have three to five, titles dozens
_WORTHWHILE = 0.75  # the cache is copied without what nothing sees once so much of it, or less, is left


@dataclass
class LongPathCache(PromptCache):
    """Offers what `PromptCache` does, and holds fewer tree tokens.

    Attributes:
        nodes: (batch, tree tokens in the cache) int64, which of all nodes that were added each one is; -1 for padding.
    """

    nodes: torch.Tensor | None = None

    def drop_tree_tokens(self) -> None:
        """Drop all tree tokens from the cache; the prompts stay."""
        super().drop_tree_tokens()
        self.nodes = None

    def extend(self, tokens: torch.Tensor, depth: int | torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
        """Add tree tokens to the cache and compute their states, zeros for texts that have ended; see `PromptCache.extend`."""
        batch, count = tokens.shape
        states = self.last.new_zeros(batch, count, self.last.shape[-1])
        is_open = tokens != NO_TOKEN
        # 1. The open nodes of each row move to the left; a row with fewer than others is padded with nodes that have ended.
        order = (~is_open).long().argsort(dim=1, stable=True)[:, : int(is_open.sum(1).max())]
        if not order.shape[1]:
            return states
        added = (ancestors.shape[-1] - count + order).masked_fill(~is_open.gather(1, order), -1)
        # 2. What no open node descends from is never seen again.
        if self.nodes is not None:
            self._forget((ancestors & is_open[..., None]).any(1))
        self.nodes = added if self.nodes is None else torch.cat([self.nodes, added], 1)
        # 3. Of the rest a node sees its ancestors, as everywhere.
        own = ancestors.gather(1, order[..., None].expand(-1, -1, ancestors.shape[-1]))
        seen = own.gather(2, self.nodes.clamp(min=0)[:, None].expand(-1, order.shape[1], -1)) & (self.nodes >= 0)[:, None]
        allowed = torch.cat([self.visible[:, None].expand(-1, order.shape[1], -1), seen], -1)[:, None]
        positions = (self.lengths[:, None] + depth).expand(batch, count).gather(1, order)
        written = tokens.gather(1, order).clamp(min=0)
        computed = self.write(written, attention_bias(self.model, allowed, self.longest), positions)
        return states.scatter(1, order[..., None].expand_as(computed), computed)

    def _forget(self, seen: torch.Tensor) -> None:
        """Drop tree tokens, if it is worth the copy.

        Args:
            seen: (batch, nodes that were ever added) bool, which some open node descends from.
        """
        assert self.nodes is not None
        kept = seen.gather(1, self.nodes.clamp(min=0)) & (self.nodes >= 0)
        most = int(kept.sum(1).max())
        if most > _WORTHWHILE * kept.shape[1]:
            return
        order = (~kept).long().argsort(dim=1, stable=True)[:, :most]
        self.nodes = self.nodes.masked_fill(~kept, -1).gather(1, order)
        prompt = self.visible.shape[1]
        places = torch.cat([torch.arange(prompt, device=order.device).expand(len(order), -1), prompt + order], 1)
        for layer in cast(list[Any], self.cache.layers):
            index = places[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)

    def _vocabulary(
        self, level: int, tokens: torch.Tensor, valid: torch.Tensor, states: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """See `PromptCache._vocabulary`; nothing is computed for nodes without a token behind them."""
        some = (valid & (tokens != NO_TOKEN)).any(-1)
        steps = torch.zeros(tokens.shape, device=tokens.device)
        if bool(some.any()):
            steps[some] = super()._vocabulary(level, tokens[some][None], valid[some][None], states[some][None], temperature)[0]
        return steps
