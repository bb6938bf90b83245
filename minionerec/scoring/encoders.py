"""What makes vectors of texts: a sentence encoder, or a causal LM with its last layer's states."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minionerec.model import checkpoint
from minionerec.prompts.encode import appended_tokens
from minionerec.scoring.vectors import Pooling, pack_texts, text_vectors
from minionerec.sid.sentence_encoders import sentence_encoder
from minionerec.training.memory import enough_memory

_ROWS = 4  # that are computed at once
_MEMORY_ADVICE = ("while texts were embedded", "Lower score.row_tokens; the vectors stay the same.")


class TextEncoder(Protocol):
    """Makes vectors of texts.

    Attributes:
        limit: tokens of a text that it reads at most; None if unlimited.
    """

    limit: int | None

    def length(self, text: str) -> int:
        """How many tokens a text has, those included that the encoder adds."""

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts, (texts, dimensions) float32; of a text that is too long only its beginning counts."""


class SentenceEncoder:
    """A sentence-transformers model with its own pooling.

    Args:
        encoder: see `sid.encoder.sentence_encoder`, whose errors it raises.
        most: tokens that it shall read at most; None for its own limit.
    """

    def __init__(self, encoder: str, most: int | None) -> None:
        self._model: Any = sentence_encoder(encoder, "score.encoder")
        self.limit = min((limit for limit in (self._model.max_seq_length, most) if limit is not None), default=None)
        self._model.max_seq_length = self.limit

    def length(self, text: str) -> int:
        """See `TextEncoder`."""
        return len(self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEncoder`."""
        made = self._model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(made, dtype=np.float32)


class CausalEncoder:
    """A causal LM, whose texts are packed into trees: what texts have in common at their beginning is computed once.

    Args:
        model: in evaluation, on its device.
        row_tokens: see `tree.pack`.
        most: tokens that it shall read at most; None for what the model can read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        row_tokens: int,
        most: int | None = None,
    ) -> None:
        self._model, self._tokenizer, self._pooling, self._row_tokens = model, tokenizer, pooling, row_tokens
        self._appended = appended_tokens(tokenizer)
        self.limit = min((limit for limit in (checkpoint.context_of(model), most) if limit is not None), default=None)

    def length(self, text: str) -> int:
        """See `TextEncoder`."""
        return len(self._tokenizer(text)["input_ids"]) - self._appended

    def tokens(self, text: str) -> list[int]:
        """The ids of a text without what the tokenizer puts behind it, as many as the model reads."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids[: len(ids) - self._appended][: self.limit]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEncoder`."""
        parts = []
        device = next(self._model.parameters()).device
        for batch in self._batches([self.tokens(text) for text in texts]):
            with torch.no_grad(), enough_memory(lambda: _MEMORY_ADVICE):
                packed = pack_texts(batch, self._pooling, self._row_tokens).to(device)
                parts.append(text_vectors(self._model, packed).cpu().numpy())
        return np.concatenate(parts)

    def _batches(self, texts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """The texts in their order, in parts of at most `_ROWS` rows, or of one text."""
        batch: list[list[int]] = []
        for text in texts:
            if batch and sum(map(len, batch)) + len(text) > _ROWS * self._row_tokens:
                yield batch
                batch = []
            batch.append(text)
        yield batch
