"""The lazy decoder of OneRec-V2 (arXiv:2508.20900, section 3): decoder layers share one context, without projections of it.

Every item of the history becomes one vector of the context C = RMSNorm(Linear(sum of its codes' embeddings + recency
embedding)); with the paper's L_kv = S_kv = 1 it is the keys and the values of every layer's cross-attention, cut into heads.
The decoder reads a start vector and the codes so far, each layer is

    x += O Attn(Q RMSNorm(x), C, C);  x += causal self-attention(RMSNorm x);  x += SwiGLU(RMSNorm x),

and every level has its own RMSNorm and its own output over its codes. The loss is the sum over the levels, at the target
alone.

Ours, where the paper leaves it open or speaks of billions of parameters: recency (0 = newest) instead of positions, separate
tables for context and decoder, an inner width of four times the hidden one, N(0, .02), dropout. Left out: mixture of experts,
user pathways, behaviours other than purchases, reinforcement learning. Adam with a constant rate, as for all baselines here.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from minionerec.baselines.coded.coded_model import GenerativeModel
from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options
from minionerec.tree import NO_TOKEN, CatalogTrie, Normalise
from minionerec.tree.architecture import Widths
from minionerec.tree.exact_scores import PASS_BYTES, Layers, prefix_scores, tokens_of_a_pass

_EPS = 1e-6


@dataclass(frozen=True)
class LazySizes(Options):
    """Options of the lazy decoder."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.4


class LazyDecoder(GenerativeModel):
    """A decoder whose layers all look at the same, unprojected vectors of the history."""

    options = LazySizes

    def __init__(self, codes: np.ndarray, max_history: int, sizes: LazySizes, lists: int) -> None:
        super().__init__(codes, max_history, sizes, lists, first=0)
        width = sizes.hidden_size
        if width % sizes.heads:
            raise ConfigError(f"baseline.hidden_size {width} does not split into {sizes.heads} heads (baseline.heads).")
        tokens = self.get_buffer("tokens")[1:]
        # A level's ids are consecutive.
        self.bounds = [0, *(int(tokens[:, level].max()) + 1 for level in range(tokens.shape[1]))]
        self.context_codes = nn.Embedding(self.vocabulary, width)
        self.recency = nn.Embedding(max_history, width)
        self.context_linear = nn.Linear(width, width)
        self.context_norm = nn.RMSNorm(width, _EPS)
        self.start = nn.Parameter(torch.empty(width))
        self.decoder_codes = nn.Embedding(self.vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, sizes.heads, sizes.dropout) for _ in range(sizes.layers))
        self.output_norms = nn.ModuleList(nn.RMSNorm(width, _EPS) for _ in range(tokens.shape[1]))
        self.outputs = nn.Parameter(torch.empty(self.vocabulary, width))
        self.dropout = nn.Dropout(sizes.dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 or name == "start":
                nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.context_linear.bias)

    def context(self, batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        """One vector per item of the history, (batch, width, hidden), and which are no padding, (batch, width) bool."""
        tokens = self.get_buffer("tokens")[batch.items]
        known = tokens != NO_TOKEN
        embedded = (self.context_codes(tokens.clamp(min=0)) * known[..., None]).sum(2)
        visible = batch.items > 0
        # 0 is the newest: how many items follow in the row.
        recency = visible.flip(1).cumsum(1).flip(1).sub(1).clamp(min=0)
        vectors = self.context_norm(self.context_linear(embedded + self.recency(recency)))
        return self.dropout(vectors), visible

    def level_logits(self, level: int, states: Tensor) -> Tensor:
        """Logits of a level's codes, (..., codes of the level)."""
        return self.output_norms[level](states) @ self.outputs[self.bounds[level] : self.bounds[level + 1]].T

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Cross-entropies of the target's codes, each among its level's, summed over the levels; mean over the batch."""
        context, visible = self.context(batch)
        targets = self.get_buffer("tokens")[batch.targets]
        embedded = self.decoder_codes(targets[:, :-1].clamp(min=0))
        x = torch.cat([self.start.expand(len(targets), 1, -1), embedded], dim=1)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x, _ = block(x, context, visible, causal)
        loss = torch.zeros((), device=x.device)
        for level in range(targets.shape[1]):
            labels = (targets[:, level] - self.bounds[level]).masked_fill(targets[:, level] == NO_TOKEN, -100)
            losses = functional.cross_entropy(self.level_logits(level, x[:, level]), labels, reduction="none")
            loss = loss + losses.mean()
        return loss

    def read(self, batch: HistoryBatch, trie: CatalogTrie, normalise_over: Normalise = "vocabulary") -> "LazyCache":
        """Histories as context, and the start vector behind them."""
        return LazyCache.compute(self, batch, trie, normalise_over)

    def prefix_scores(self, batch: HistoryBatch, normalise_over: Normalise = "vocabulary") -> list[Tensor]:
        """The exact score of every prefix of every SID."""
        prompts = self.read(batch, self.trie, normalise_over)
        width, block = self.start.shape[0], cast(_Block, self.blocks[0])
        layers = Layers(len(self.blocks), width, Widths(block.heads, width, width, 4 * width), self.start.element_size())
        logits = 4 * 4 * max(after - before for before, after in itertools.pairwise(self.bounds))  # float32, in up to 4 stages
        return prefix_scores(prompts, lambda: tokens_of_a_pass(prompts, layers, logits, PASS_BYTES))


class _Block(nn.Module):
    """One layer: attention to the context, to the codes so far, and a feed-forward, each pre-norm with a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norms = nn.ModuleList(nn.RMSNorm(width, _EPS) for _ in range(3))
        self.cross_query, self.cross_out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor, visible: Tensor, allowed: Tensor, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States and this layer's keys and values.

        Args:
            x: (batch, tokens, hidden).
            context: (batch, width, hidden).
            visible: (batch, width) bool.
            allowed: bool, broadcast to (batch, heads, tokens, tokens so far): what each token sees.
            past: keys and values, (batch, heads, tokens before, head).
        """
        shared = self._split(context)
        seen = self._attend(self._split(self.cross_query(self.norms[0](x))), shared, shared, visible[:, None, None])
        x = x + self.dropout(self.cross_out(seen))
        normed = self.norms[1](x)
        query, key, value = (self._split(layer(normed)) for layer in (self.query, self.key, self.value))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        x = x + self.dropout(self.out(self._attend(query, key, value, allowed)))
        normed = self.norms[2](x)
        return x + self.dropout(self.down(functional.silu(self.gate(normed)) * self.up(normed))), (key, value)

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        rate = self.rate if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        return attended.transpose(1, 2).flatten(2)


@dataclass
class LazyCache:
    """A lazy decoder that has read a batch of histories, and the tree tokens added to it; offers what `tree.PromptCache` does.

    Attributes:
        trie: the valid SIDs, or a view.
        context: (batch, width, hidden); `visible` (batch, width) bool.
        last: (batch, 1, hidden), the states of the start vector.
        past: per layer, keys and values of the decoder's row: the start vector, then the tree tokens.
        normalise_over: `vocabulary` means all codes of a level, `catalog` those that continue a SID.
    """

    model: LazyDecoder
    trie: CatalogTrie
    context: Tensor
    visible: Tensor
    last: Tensor
    past: list[tuple[Tensor, Tensor]]
    normalise_over: Normalise = "vocabulary"

    @classmethod
    def compute(
        cls, model: LazyDecoder, batch: HistoryBatch, trie: CatalogTrie, normalise_over: Normalise = "vocabulary"
    ) -> "LazyCache":
        """Read the histories and compute the start vector."""
        with torch.no_grad():
            context, visible = model.context(batch)
            prompts = cls(model, trie, context, visible, torch.empty(0), [], normalise_over)
            start = model.start.expand(len(context), 1, -1)
            prompts.last = prompts._decode(start, torch.ones(len(context), 1, 1, dtype=torch.bool, device=start.device))
        return prompts

    def select(self, rows: Tensor) -> "LazyCache":
        """The cache of some histories of the batch, without tree tokens."""
        self.drop_tree_tokens()
        past = [(key[rows], value[rows]) for key, value in self.past]
        chosen = {name: getattr(self, name)[rows] for name in ("context", "visible", "last")}
        return replace(self, trie=self.trie.requests(rows), past=past, **chosen)

    def drop_tree_tokens(self) -> None:
        """Drop all tree tokens; the start vector stays."""
        self.past = [(key[:, :, :1], value[:, :, :1]) for key, value in self.past]

    def extend(self, tokens: Tensor, depth: int | Tensor, ancestors: Tensor) -> Tensor:
        """Add tree tokens and compute their states, (batch, nodes, hidden); see `tree.PromptCache.extend`."""
        del depth  # a token's id says its level
        start = torch.ones(*tokens.shape, 1, dtype=torch.bool, device=tokens.device)
        with torch.no_grad():
            return self._decode(self.model.decoder_codes(tokens.clamp(min=0)), torch.cat([start, ancestors], dim=-1))

    def _decode(self, x: Tensor, allowed: Tensor) -> Tensor:
        before: Sequence[tuple[Tensor, Tensor] | None] = self.past or [None] * len(self.model.blocks)
        self.past = []
        for block, past in zip(self.model.blocks, before, strict=True):
            x, kept = block(x, self.context, self.visible, allowed[:, None], past)
            self.past.append(kept)
        return x

    def child_logprobs(
        self, level: int, nodes: Tensor, states: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers, tokens and log-probabilities of the legal next codes; see `tree.PromptCache.child_logprobs`."""
        child_nodes, tokens, valid = self.trie.children(level, nodes)
        with torch.no_grad():
            logits = self.model.level_logits(level, states).float() / temperature
        column = (tokens - self.model.bounds[level]).clamp(min=0, max=logits.shape[-1] - 1)
        if self.normalise_over == "catalog":
            steps = logits.gather(-1, column).masked_fill(~valid, torch.finfo(torch.float32).min).log_softmax(-1)
        else:
            steps = logits.log_softmax(-1).gather(-1, column)
        return child_nodes, tokens, steps.clamp(max=0.0).masked_fill(tokens == NO_TOKEN, 0.0).masked_fill(~valid, -torch.inf)
