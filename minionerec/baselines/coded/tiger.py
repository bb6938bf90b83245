"""TIGER (Rajput et al., NeurIPS 2023): a T5 reads the codes of the history and writes the codes of the next item.

Sizes are those of small public re-implementations (LETTER, LIGER), smaller by default. Deviations: no user token and no end
token (but one if some SID is the beginning of another), as in LETTER and LIGER; the target's codes alone are trained; SIDs
are the run's, whatever made them; Adam with a constant rate and the choice of the best epoch by NDCG@10 on valid, as for all
baselines here; the search is over the trie, with a certificate (`tree/encoder_decoder.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from minionerec.baselines.coded.coded_model import GenerativeModel
from minionerec.model.sequential.batches import HistoryBatch
from minionerec.model.sequential.sequential_model import Options
from minionerec.tree import NO_TOKEN, CatalogTrie, Normalise
from minionerec.tree.exact_scores import PASS_BYTES, chunk_size, prefix_scores
from minionerec.tree.prompt_cache import PromptCache
from minionerec.tree.self_test import check_exact

PAD, END, FIRST = 0, 1, 2  # token ids; padding is also what the decoder starts with
_TIED = ("t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight", "t5.lm_head.weight")  # to t5.shared.weight


@dataclass(frozen=True)
class TigerSizes(Options):
    """Options of TIGER."""

    hidden_size: int = 128
    inner_size: int = 512
    layers: int = 2
    heads: int = 4
    head_size: int = 32
    dropout: float = 0.2
    buckets: int = 1


class TIGER(GenerativeModel):
    """An encoder-decoder over codes; `layers` is the number of layers of each half."""

    options = TigerSizes

    def __init__(self, codes: np.ndarray, max_history: int, sizes: TigerSizes, lists: int) -> None:
        super().__init__(codes, max_history, sizes, lists, FIRST)
        config = T5Config(
            vocab_size=self.vocabulary,
            d_model=sizes.hidden_size,
            d_kv=sizes.head_size,
            d_ff=sizes.inner_size,
            num_layers=sizes.layers,
            num_heads=sizes.heads,
            dropout_rate=sizes.dropout,
            pad_token_id=PAD,
            eos_token_id=END,
        )
        config.decoder_start_token_id = PAD
        self.t5 = T5ForConditionalGeneration(config)
        self.t5.set_attn_implementation("sdpa")
        self.buckets = sizes.buckets
        self._checked = False

    def trie_of(self, tokens: Tensor) -> CatalogTrie:
        """The trie of all SIDs; each ends with the end token if some SID is the beginning of another."""
        trie = CatalogTrie.from_codes(tokens)
        return CatalogTrie.from_codes(tokens, trailing=[END]) if trie.prefixed else trie

    def written(self, batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        """How the codes of each history stand in a prompt: oldest item first, padded on the left.

        Returns:
            columns: (batch, longest), which of the row's width x levels codes stands at each place.
            mask: (batch, longest) bool, False on padding.
        """
        known = (self.get_buffer("tokens")[batch.items] != NO_TOKEN).flatten(1)
        columns = known.long().argsort(dim=1, stable=True)[:, -int(known.sum(1).max()) :]
        return columns, known.gather(1, columns)

    def prompts(self, batch: HistoryBatch) -> tuple[Tensor, Tensor]:
        """The codes of each history, oldest item first, padded on the left: ids and mask, (batch, longest)."""
        columns, mask = self.written(batch)
        codes = self.get_buffer("tokens")[batch.items].flatten(1)
        return codes.gather(1, columns).masked_fill(~mask, PAD), mask.long()

    def labels(self, targets: Tensor) -> Tensor:
        """What the decoder shall write, (batch, tokens); -100 behind the end."""
        codes = self.get_buffer("tokens")[targets]
        if not self.trie.trailing:
            return codes.masked_fill(codes == NO_TOKEN, -100)
        ends = (codes != NO_TOKEN).sum(1, keepdim=True)
        codes = torch.nn.functional.pad(codes.masked_fill(codes == NO_TOKEN, -100), (0, 1), value=-100)
        return codes.scatter(1, ends, END)

    def forward(self, batch: HistoryBatch) -> Tensor:
        """The loss of a batch; with `buckets` its histories are sorted by length and computed in so many parts.

        A part is padded to its own longest history. The parts' losses are weighted so that their sum is the batch's loss.
        """
        vectors = self.item_vectors()
        if self.buckets == 1:
            return self.loss(batch, vectors, 1.0, 1.0)
        codes = (self.labels(batch.targets) >= 0).sum(1)
        total = torch.zeros((), device=codes.device)
        for rows in batch.lengths.argsort(stable=True).chunk(self.buckets):
            part = HistoryBatch(*(values[rows] for values in batch))
            total = total + self.loss(part, vectors, float(codes[rows].sum() / codes.sum()), len(rows) / len(codes))
        return total

    def item_vectors(self) -> Tensor | None:
        """What all parts of a batch read of the items; TIGER knows these by their codes alone."""
        return None

    def loss(self, batch: HistoryBatch, vectors: Tensor | None, codes: float, rows: float) -> Tensor:
        """Mean cross-entropy of the targets' codes over the vocabulary, times `codes`.

        Args:
            vectors: from `item_vectors`.
            codes, rows: shares of these codes and histories in the whole batch.
        """
        del vectors, rows
        ids, mask = self.prompts(batch)
        return cast(Any, self.t5)(input_ids=ids, attention_mask=mask, labels=self.labels(batch.targets)).loss * codes

    @torch.no_grad()
    def read(self, batch: HistoryBatch, trie: CatalogTrie, normalise_over: Normalise = "vocabulary") -> PromptCache:
        """Histories that the encoder has read.

        Raises:
            ConstraintError: the tree gives other numbers than plain forwards.
        """
        return PromptCache.compute(self.checked_t5(), *self.prompts(batch), trie, normalise_over)

    def prefix_scores(self, batch: HistoryBatch, normalise_over: Normalise = "vocabulary") -> list[Tensor]:
        """The exact score of every prefix of every SID."""
        prompts = self.read(batch, self.trie, normalise_over)
        return prefix_scores(prompts, lambda: chunk_size(prompts, PASS_BYTES))

    def checked_t5(self) -> PreTrainedModel:
        """The T5, after a look at whether its tree gives what plain forwards give."""
        model = cast(PreTrainedModel, self.t5)
        if not self._checked:
            check_exact(model)
            self._checked = True
        return model

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The tensors, each once: T5 has its table under four names."""
        state = super().state_dict(*args, **kwargs)
        for name in _TIED:
            state.pop(f"{kwargs.get('prefix', '')}{name}")
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load what `state_dict` gives."""
        return super().load_state_dict({**state_dict, **dict.fromkeys(_TIED, state_dict["t5.shared.weight"])}, *args, **kwargs)
