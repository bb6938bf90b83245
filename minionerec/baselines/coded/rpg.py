"""RPG (Hou et al., KDD 2025, arXiv:2506.05781): many codes per item, all predicted at once, the whole catalog scored exactly.

An item has one code for each of K digits, from optimised product quantisation of its text vector (`sid/product.py`), after a
PCA that whitens it; both are fitted to the items of the train split. The mean of its codes' embeddings is the input to a
small GPT-2. From the state h after the last item head k makes z_k = h + SiLU(W_k h + b_k), and a digit's distribution is the
softmax of cos(z_k, E) / temperature over that digit's codes. The loss is the mean cross-entropy of the target's codes. An
item's score, the mean of its codes' log-probabilities, is the product of concat_k(z_k / |z_k|) / (K temperature) with
concat_k(E_code / |E_code|), less a number of the row's own: so `vectors.safetensors` holds it, and RPG can be an assistant or
a reward like any other baseline.

Deviations: the release finds items by a walk over a graph, we score all of them; the loss is at the last position of each
history, not at every position; the text vectors are the run's; Adam with a constant rate and without clipping, as for all
baselines here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2Model

from minionerec.baselines.coded.coded_model import CodedModel
from minionerec.config import SidConfig
from minionerec.errors import ConfigError
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options
from minionerec.sid.product import fit_product

CODES, DIMENSIONS = 256, 256  # of a digit; of a whitened vector, at most


@dataclass(frozen=True)
class RPGSizes(Options):
    """Options of RPG."""

    hidden_size: int = 128
    inner_size: int = 512
    layers: int = 2
    heads: int = 4
    dropout: float = 0.3
    digits: int = 16
    temperature: float = 0.07


class RPG(CodedModel):
    """A GPT-2 over items that predicts all digits of the next one in parallel."""

    reads = ("vectors",)
    options = RPGSizes
    causal = True

    def __init__(self, codes: np.ndarray, max_history: int, sizes: RPGSizes, lists: int) -> None:
        super().__init__(codes, max_history, sizes, lists)
        width, digits = sizes.hidden_size, codes.shape[1]
        if width % sizes.heads:
            raise ConfigError(f"baseline.hidden_size {width} does not split into {sizes.heads} heads (baseline.heads).")
        self.digits, self.temperature = digits, sizes.temperature
        self.codes_per_digit = CODES
        # Row 0 of wte is padding; its last row is the release's end, which nothing reads.
        rows = np.concatenate([np.zeros((1, digits), np.int64), codes.astype(np.int64) + CODES * np.arange(digits) + 1])
        distinct, row_of = np.unique(rows, axis=0, return_inverse=True)
        self.register_buffer("distinct", torch.from_numpy(distinct), persistent=False)  # rows of codes, as rows of wte
        # Of each item, and of padding, the number of its row among the distinct ones.
        self.register_buffer("row_of", torch.from_numpy(row_of.reshape(-1)), persistent=False)
        self.gpt2 = GPT2Model(
            GPT2Config(
                vocab_size=digits * CODES + 2,
                n_positions=max_history,
                n_embd=width,
                n_layer=sizes.layers,
                n_head=sizes.heads,
                n_inner=sizes.inner_size,
                embd_pdrop=sizes.dropout,
                attn_pdrop=sizes.dropout,
                resid_pdrop=0.0,
            )
        )
        self.gpt2.set_attn_implementation("sdpa")
        self.weight = nn.Parameter(torch.zeros(digits, width, width))
        self.bias = nn.Parameter(torch.zeros(digits, width))

    @classmethod
    def check_items(cls, trained: int) -> None:
        """Refuse to fit the codes of a digit to fewer items than it has codes.

        Raises:
            ConfigError: too few items in the train split.
        """
        if trained < CODES:
            raise ConfigError(
                f"baseline.model rpg fits {CODES} codes per digit to the items of the train split, but it has only "
                f"{trained} items. Choose another baseline, such as sasrec."
            )

    @classmethod
    def codes_of(cls, vectors: np.ndarray, trained: np.ndarray, options: RPGSizes, seed: int) -> np.ndarray:
        """OPQ codes of whitened vectors, (items, digits) int64.

        Raises:
            ConfigError: too few items in the train split, or vectors with fewer dimensions than digits.
        """
        cls.check_items(len(trained))
        points = np.ascontiguousarray(vectors, dtype=np.float64)
        dimensions = min(DIMENSIONS, points.shape[1], len(trained) - 1)
        if dimensions < options.digits:
            raise ConfigError(
                f"baseline.digits is {options.digits}, but the item vectors have only {dimensions} dimensions; lower it."
            )
        pca = PCA(dimensions, whiten=True, svd_solver="full").fit(points[trained])
        whitened = pca.transform(points).astype(np.float32)
        settings = SidConfig(method="opq", codebook_sizes=[CODES] * options.digits)
        return fit_product(whitened[trained], settings, seed).encode(whitened).astype(np.int64)

    def code_table(self) -> Tensor:
        """The embeddings of all codes, tied to the input: (digits, codes, hidden)."""
        return self.gpt2.wte.weight[1:-1].unflatten(0, (self.digits, self.codes_per_digit))

    def hidden(self, batch: HistoryBatch) -> Tensor:
        """GPT-2's state after each history, (batch, hidden)."""
        longest = max(int(batch.lengths.max()), 1)
        items = batch.items[:, :longest]
        embedded = self.gpt2.wte(self._rows_of(items)).mean(2)
        states = self.gpt2(inputs_embeds=embedded, attention_mask=(items > 0).long().index_fill(1, items.new_zeros(1), 1))
        rows = torch.arange(len(items), device=items.device)
        return states.last_hidden_state[rows, batch.lengths.clamp(min=1) - 1]

    def digit_vectors(self, batch: HistoryBatch) -> Tensor:
        """z_k of each history, at unit length, (batch, digits, hidden)."""
        h = self.hidden(batch)
        z = h[:, None] + functional.silu(torch.einsum("bh,kgh->bkg", h, self.weight) + self.bias)
        return functional.normalize(z, dim=-1)

    def states(self, batch: HistoryBatch) -> Tensor:
        """(batch, digits * hidden), see `SequentialModel`: times `vectors` they are scores less a number of the row's own."""
        return self.digit_vectors(batch).flatten(1) / (self.digits * self.temperature)

    def vectors(self) -> Tensor:
        """(items + 1, digits * hidden): each item's code embeddings at unit length, one after the other; row 0 is padding."""
        return self._distinct_vectors()[self.get_buffer("row_of")]

    def _distinct_vectors(self) -> Tensor:
        """(distinct rows, digits * hidden) of the distinct rows of codes."""
        return functional.normalize(self.gpt2.wte(self.get_buffer("distinct")), dim=-1).flatten(1)

    def _rows_of(self, items: Tensor) -> Tensor:
        """The rows of wte of items' codes, (..., digits)."""
        return self.get_buffer("distinct")[self.get_buffer("row_of")[items]]

    def logits(self, states: Tensor) -> Tensor:
        """Scores of all items, (batch, items + 1). Items of one row of codes have one score: a product of its own may round."""
        return (states @ self._distinct_vectors().T)[:, self.get_buffer("row_of")]

    def digit_logprobs(self, batch: HistoryBatch) -> Tensor:
        """Log-probability of every code of every digit, (batch, digits, codes)."""
        table = functional.normalize(self.code_table(), dim=-1)
        return (torch.einsum("bkh,kch->bkc", self.digit_vectors(batch), table) / self.temperature).log_softmax(-1)

    def forward(self, batch: HistoryBatch) -> Tensor:
        """Mean over the digits of the cross-entropy of the target's code."""
        first = torch.arange(self.digits, device=batch.targets.device) * self.codes_per_digit + 1
        targets = self._rows_of(batch.targets) - first
        return -self.digit_logprobs(batch).gather(2, targets[..., None]).mean()
