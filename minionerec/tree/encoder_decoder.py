"""A T5 as a tree: the encoder reads each prompt once, and the decoder's row holds the tree tokens behind its start token.

T5 takes no positions. It adds to every attention score a learnt bias for the distance of two tokens, counted along the row, so
siblings that stand side by side would get wrong distances. The remedy is a float mask: with `bias(d)` the model's own bias of a
distance, a query and a key at depths D and in the places P of the row get

    bias(D_key - D_query) - bias(P_key - P_query),

to which T5 adds `bias(P_key - P_query)` itself, and the lowest number where the key is no ancestor. All layers use the bias
of the first, so one mask serves all. The start token has depth 0, a code of level l (from 0) depth l + 1.

Decoder and beam search of TIGER: Rajput et al., "Recommender Systems with Generative Retrieval", NeurIPS 2023.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.prompt_cache import Checked, Normalise, PromptCache
from minionerec.tree.trie import CatalogTrie


def check_t5(model: PreTrainedModel) -> None:
    """Refuse an encoder-decoder whose distances a tree cannot correct.

    Raises:
        ConstraintError: it is no T5, its layers have biases of their own, or its attention is neither sdpa nor eager.
    """
    decoder: Any = getattr(model, "decoder", None)
    biased = (
        [layer.layer[0].SelfAttention.has_relative_attention_bias for layer in decoder.block]
        if model.config.model_type == "t5" and decoder is not None
        else []
    )
    if not biased or biased != [True] + [False] * (len(biased) - 1):
        raise ConstraintError(
            f"A {type(model).__name__} is an encoder-decoder whose positions a tree cannot set. Take a T5 with one bias of "
            "distances for all layers of its decoder (T5ForConditionalGeneration), or a decoder-only model."
        )
    if model.config._attn_implementation not in ("sdpa", "eager"):
        raise ConstraintError(
            f"The model was loaded with attention {model.config._attn_implementation!r}, which cannot take a tree mask. "
            "Load it with attn_implementation='sdpa' or 'eager'."
        )


@dataclass
class T5PromptCache(PromptCache):
    """A T5 whose encoder has read the prompts of a batch, and whose decoder's cache holds the tree tokens.

    It offers what `PromptCache` does. There `visible` and `lengths` are of the encoder's tokens, which tree tokens attend to
    across; `longest` has no meaning, because distances have no limit.

    Attributes:
        encoded: (batch, prompt length, hidden), what the encoder makes of the prompts.
        depths: (tokens of the decoder's row,) the depth of each, the start token's first.
    """

    encoded: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    depths: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @classmethod
    def begin(
        cls,
        checked: Checked,
        input_ids: torch.Tensor,
        trie: CatalogTrie,
        normalise_over: Normalise,
    ) -> "T5PromptCache":
        """Read checked prompts and compute the decoder's start token."""
        encoder = cast(Any, checked.model).encoder
        encoded = encoder(input_ids=input_ids, attention_mask=checked.attention_mask).last_hidden_state
        return cls.of_encoded(checked.model, encoded, checked.visible, trie, normalise_over)

    @classmethod
    def of_encoded(
        cls,
        model: PreTrainedModel,
        encoded: torch.Tensor,
        visible: torch.Tensor,
        trie: CatalogTrie,
        normalise_over: Normalise = "vocabulary",
    ) -> "T5PromptCache":
        """Compute the decoder's start token behind prompts that the encoder has read, whatever its input was.

        Args:
            model: a T5 in evaluation mode that `check_t5` accepts.
            encoded: (batch, prompt length, hidden), what its encoder makes of the prompts.
            visible: (batch, prompt length) bool, False on padding.
        """
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        none = torch.empty(0, dtype=torch.long, device=encoded.device)
        prompts = cls(
            model, trie, normalise_over, cast(Any, cache), visible, visible.sum(-1), 0, encoded, encoded=encoded, depths=none
        )
        start = torch.full((len(encoded), 1), model.config.decoder_start_token_id, device=encoded.device)
        itself = torch.ones(len(encoded), 1, 1, dtype=torch.bool, device=encoded.device)
        prompts.last = prompts._decode(start, 0, itself)
        return prompts

    def select(self, rows: torch.Tensor) -> "T5PromptCache":
        """The cache of some prompts of the batch, without tree tokens; this one must not be used again."""
        self.drop_tree_tokens()
        self.cache.batch_select_indices(rows)
        return replace(
            self,
            trie=self.trie.requests(rows),
            visible=self.visible[rows],
            lengths=self.lengths[rows],
            last=self.last[rows],
            encoded=self.encoded[rows],
        )

    def drop_tree_tokens(self) -> None:
        """Drop all tree tokens from the decoder's cache; its start token stays."""
        if len(self.depths) > 1:
            cast(Any, self.cache).self_attention_cache.crop(1 - len(self.depths))
            self.depths = self.depths[:1]

    def extend(self, tokens: torch.Tensor, depth: int | torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
        """Add tree tokens to the cache and compute their states; see `PromptCache.extend`."""
        start = torch.ones(*tokens.shape, 1, dtype=torch.bool, device=tokens.device)
        return self._decode(tokens.clamp(min=0), depth + 1, torch.cat([start, ancestors], dim=-1))

    def _decode(self, tokens: torch.Tensor, depth: int | torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Write tokens to the decoder's row; their states, (batch, nodes, hidden).

        Args:
            depth: of the tokens, the start token's being 0.
            allowed: (batch, nodes, tokens of the row so far) bool.
        """
        past = len(self.depths)
        new = torch.as_tensor(depth, device=tokens.device).expand(tokens.shape[1])
        self.depths = torch.cat([self.depths, new])
        attention = cast(Any, self.model).decoder.block[0].layer[0].SelfAttention
        places = torch.arange(len(self.depths), device=tokens.device)
        right = _bias(attention, self.depths[None] - self.depths[past:, None])
        added_by_t5 = _bias(attention, places[None] - places[past:, None])
        mask = (right - added_by_t5)[None].masked_fill(~allowed[:, None], torch.finfo(right.dtype).min)
        output = cast(Any, self.model).decoder(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.visible.long(),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _logits(self, states: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of some tokens, or of the vocabulary: (..., tokens)."""
        config: Any = self.model.config
        if config.scale_decoder_outputs:
            states = states * config.d_model**-0.5
        weight = cast(torch.nn.Linear, self.model.get_output_embeddings()).weight
        return torch.nn.functional.linear(states, weight if tokens is None else weight[tokens])


def _bias(attention: Any, distances: torch.Tensor) -> torch.Tensor:
    """T5's bias of distances, (heads, queries, keys).

    Args:
        attention: the self-attention of the decoder's first layer.
        distances: (queries, keys) of the keys from the queries.
    """
    buckets = attention._relative_position_bucket(
        distances,
        bidirectional=False,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(buckets).permute(2, 0, 1)
