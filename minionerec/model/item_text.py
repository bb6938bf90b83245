"""A Qwen2 that knows its items' text vectors: at the input, and as a second distribution over the catalog at the output.

Input: the token that completes the SID of an item also gets the item's vector, through a learnt linear layer. Which token that
is follows from the tokens before it alone, so a prefix tree, a padded batch and a plain text give it the same vector. Tokens
that are added to a cache of keys and values get none: they write a SID, and the token that would complete it is never computed.

Output: from the state h that predicts the first code, each SID i with the vector e_i has the probability softmax(W h . e_i)
over the catalog, and the model's distribution is (1 - g) p_LM + g p_text with g = sigmoid(w . h + b). An item never seen in
training has a vector as any other, so it can be recommended. Generative and dense retrieval in one model: LIGER
(arXiv 2411.18814) and COBRA (arXiv 2503.02453) rank the beams' items by a second score; here the two are one distribution
over the leaves of the trie, which search decodes exactly (`tree/prior.py`).

Vectors and SIDs lie in the model's safetensors, so that a model needs nothing else. Vectors are centred and of length 1.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2Model
from transformers.modeling_outputs import CausalLMOutputWithPast

from minionerec.tree import CatalogTrie
from minionerec.tree.trie import NO_TOKEN

MODEL_TYPE = "qwen2_item_text"
_SHARPNESS = 10.0  # of the first text distribution: softmax(10 cos), as text neighbours with temperature .1
_GATE = -1.0  # the first g is sigmoid(-1) = .27 for every history


class ItemTextConfig(Qwen2Config):
    """A Qwen2's configuration with the sizes of the item table.

    Attributes:
        items, levels, dimensions: of the SIDs (items, levels) and of the vectors (items, dimensions).
        text_input: vectors are added at the input.
        text_replaces: they stand in place of the embedding of the token that completes an item, instead of being added to it.
        text_output: vectors give a second distribution at the output.
    """

    model_type = MODEL_TYPE
    items: int = 1
    levels: int = 1
    dimensions: int = 1
    text_input: bool = False
    text_replaces: bool = False
    text_output: bool = False

    @property
    def auto_map(self) -> dict[str, str]:
        """Where else the architecture could be read from: nowhere. TRL asks, when it loads RL's reference model."""
        return {}


class ItemTexts(nn.Module):
    """The catalog as the model sees it: each item's SID and its vector.

    Attributes:
        vectors: (items, dimensions) float32.
        sid_tokens: (items, levels) int64 token ids, `NO_TOKEN` behind the end of a short SID.
    """

    vectors: torch.Tensor
    sid_tokens: torch.Tensor

    def __init__(self, items: int, levels: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(items, dimensions))
        self.register_buffer("sid_tokens", torch.full((items, levels), NO_TOKEN))
        self._paths: _Paths | None = None

    @property
    def paths(self) -> "_Paths":
        """The SIDs as a trie, made when first needed and again on another device."""
        if self._paths is None or self._paths.leaf_vectors.device != self.vectors.device:
            self._paths = _Paths.of(self.sid_tokens, self.vectors)
        return self._paths

    def _apply(self, *args: Any, **kwargs: Any) -> "ItemTexts":
        self._paths = None  # moved or cast
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._paths = None
        super()._load_from_state_dict(*args, **kwargs)


@dataclass(frozen=True)
class _Paths:
    """The trie of the SIDs, in the form in which many tokens are followed at once.

    Attributes:
        trie: of the SIDs; a leaf of several items has the mean of their vectors.
        keys: per level, (nodes,) int64, sorted: the number of each node's parent times `base` plus its token plus 1.
        base: one more than the largest token plus 1.
        leaf_vectors: (leaves, dimensions).
    """

    trie: CatalogTrie
    keys: tuple[torch.Tensor, ...]
    base: int
    leaf_vectors: torch.Tensor

    @classmethod
    def of(cls, sid_tokens: torch.Tensor, vectors: torch.Tensor) -> "_Paths":
        trie = CatalogTrie.from_codes(sid_tokens, sid_tokens.device)
        base = int(sid_tokens.max()) + 2
        keys = tuple(trie.parents(level) * base + tokens + 1 for level, tokens in enumerate(trie.tokens))
        leaves = trie.leaf_of_item.long()
        sums = vectors.new_zeros(len(trie), vectors.shape[1]).index_add_(0, leaves, vectors)
        counts = torch.bincount(leaves, minlength=len(trie))
        return cls(trie, keys, base, sums / counts[:, None].to(sums.dtype))

    def below(self, level: int, parents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The node of a level to which a token leads from its parent, -1 for none; any shape."""
        keys = self.keys[level]
        wanted = parents * self.base + tokens + 1
        places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where((parents >= 0) & (tokens < self.base - 1) & (keys[places] == wanted), places, -1)

    def completed(self, tokens: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """The SID that each token completes.

        Args:
            tokens: (rows, length) token ids.
            before: (rows, length) the column of the token before each, -1 for none.

        Returns:
            (rows, length) numbers of leaves, -1 where no SID ends.
        """
        leaves = torch.full_like(tokens, -1)
        nodes = self.below(0, torch.zeros_like(tokens), tokens)
        for level in range(self.trie.depth):
            if level:
                above = nodes.gather(1, before.clamp(min=0)).masked_fill(before < 0, -1)
                nodes = self.below(level, above, tokens)
            ended = nodes
            for deeper in range(level + 1, self.trie.depth):  # a short SID goes on with `NO_TOKEN` only
                ended = self.below(deeper, ended, torch.full_like(tokens, NO_TOKEN))
            leaves = torch.where(ended >= 0, ended, leaves)
        return leaves


def tokens_before(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """The column of the token before each in its text: (rows, length) int64, -1 for none.

    In a plain text it stands in the column before, unless that is padding. In a prefix tree it is the token that the mask shows
    at the position before.

    Args:
        attention_mask: None, of the padding (rows, length), or of the tree (rows, 1, length, length), bool or added to scores.
        position_ids: (rows, length), in a tree.
    """
    rows, length = input_ids.shape
    if attention_mask is None or attention_mask.dim() == 2 or position_ids is None:
        before = torch.arange(-1, length - 1, device=input_ids.device).expand(rows, -1)
        if attention_mask is not None and attention_mask.dim() == 2:
            before = before.masked_fill(~attention_mask[:, :length].bool().roll(1, 1), -1)
        return before
    allowed = attention_mask[:, 0] if attention_mask.dtype == torch.bool else attention_mask[:, 0] == 0
    before = allowed & (position_ids[:, None, :] == position_ids[:, :, None] - 1)
    return torch.where(before.any(-1), before.int().argmax(-1), -1)


class ItemTextModel(Qwen2Model):
    """A Qwen2 whose input has the vectors of complete items."""

    config_class = ItemTextConfig

    def __init__(self, config: ItemTextConfig) -> None:
        super().__init__(config)
        self.texts = ItemTexts(config.items, config.levels, config.dimensions)
        self.text_in = nn.Linear(config.dimensions, config.hidden_size, bias=False) if config.text_input else None
        self.post_init()

    def static_embeddings(self, input_ids: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """The embeddings that `forward` gives prompts, in shapes that depend on no tensor's data; the host waits for nothing.

        Every token's vector is projected, most of which are zeros: more work than `forward` has, but for a CUDA graph the only
        way (`tree/static_search.py`).

        Args:
            input_ids: (rows, length) token ids.
            visible: (rows, length) bool, False on padding, which may hold any ids and stands on the left.

        Returns:
            (rows, length, hidden).
        """
        embeddings: torch.Tensor = self.embed_tokens(input_ids)
        if self.text_in is None:
            return embeddings
        leaves = self.texts.paths.completed(input_ids, tokens_before(input_ids, visible, None))
        missing = leaves[..., None] < 0
        vectors = self.texts.paths.leaf_vectors[leaves.clamp(min=0)].masked_fill(missing, 0)
        added = self.text_in(vectors.to(self.text_in.weight.dtype)).to(embeddings.dtype)
        return torch.where(missing, embeddings, added if self.config.text_replaces else embeddings + added)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Qwen2's; given `inputs_embeds` or a filled cache, nothing is added."""
        if self.text_in is not None and input_ids is not None and not (past_key_values and past_key_values.get_seq_length()):
            inputs_embeds = self.embed_tokens(input_ids)
            paths = self.texts.paths
            leaves = paths.completed(input_ids, tokens_before(input_ids, attention_mask, position_ids))
            ends = leaves >= 0
            added = self.text_in(paths.leaf_vectors[leaves[ends]].to(self.text_in.weight.dtype))
            places, added = ends.nonzero(as_tuple=True), added.to(inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.index_put(places, added, accumulate=not self.config.text_replaces)
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


@dataclass
class ItemTextOutput(CausalLMOutputWithPast):
    """Logits, and the states that they were computed from.

    Attributes:
        states: the last hidden states of the tokens of `logits`, (..., hidden).
    """

    states: torch.Tensor | None = None


class ItemTextForCausalLM(Qwen2ForCausalLM):
    """A causal LM over `ItemTextModel`, with a second distribution over the catalog if `config.text_output`.

    `logits` are the language model's alone; who mixes is `tree/leaf_component.py`.
    """

    config_class = ItemTextConfig

    def __init__(self, config: ItemTextConfig) -> None:
        super(Qwen2ForCausalLM, self).__init__(config)
        self.model = ItemTextModel(config)
        self.vocab_size = config.vocab_size
        # Of `leaf_trie`, and of the trie that was found to have the same SIDs (`tree.leaf_component.check_leaves`).
        self.checked_tokens: tuple[tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None] = (None, None)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.text_output:
            self.text_out = nn.Linear(config.hidden_size, config.dimensions, bias=False)
            self.text_gate = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> ItemTextOutput:
        """As Qwen2's.

        Raises:
            ValueError: labels are given: the loss of whole items is computed elsewhere.
        """
        if labels is not None:
            raise ValueError("This model computes no loss of its own; train it with minionerec sft.")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            states = states[:, -logits_to_keep:] if logits_to_keep else states
        else:
            states = states[logits_to_keep] if logits_to_keep.dtype == torch.bool else states[:, logits_to_keep]
        return ItemTextOutput(
            logits=self.lm_head(states),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            states=states,
        )

    @property
    def has_leaf_component(self) -> bool:
        """Whether there is a second distribution over the catalog."""
        return bool(self.config.text_output)

    @property
    def leaf_trie(self) -> CatalogTrie:
        """The catalog whose leaves `leaf_component` numbers."""
        return self.model.texts.paths.trie

    def leaf_component(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The second distribution over the catalog, and its weight.

        Args:
            states: (histories, hidden), of the token that predicts the first code.

        Returns:
            log-probabilities of the leaves, (histories, leaves) float32 in nats; and the logit of the weight g, (histories,).
        """
        vectors = self.model.texts.paths.leaf_vectors
        scores = self.text_out(states).float() @ vectors.float().T
        return scores.log_softmax(-1), self.text_gate(states).float().squeeze(-1)


AutoConfig.register(MODEL_TYPE, ItemTextConfig)
AutoModelForCausalLM.register(ItemTextConfig, ItemTextForCausalLM)


def with_item_texts(
    model: Qwen2ForCausalLM,
    sid_tokens: torch.Tensor,
    vectors: np.ndarray,
    *,
    text_input: bool,
    text_output: bool,
    seed: int,
    weights: bool = True,
) -> ItemTextForCausalLM:
    """A Qwen2 with the weights of another, and with item texts.

    The new layers begin as text neighbours: the input projects a vector onto its principal components, rotated at random, and
    the output projects back, so that before any training a history's last item makes items of similar text probable.

    Args:
        model: its weights are copied; all SID tokens are in its vocabulary.
        sid_tokens: (items, levels), as `checkpoint.sid_token_ids` gives them.
        vectors: (items, dimensions) float32; without weights only their shape counts.
        text_input, text_output: see `ItemTextConfig`.
        seed: of the rotation.
        weights: False makes all parameters on the meta device.
    """
    items, dimensions = vectors.shape
    config = ItemTextConfig(
        **{name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "architectures")},
        items=items,
        levels=sid_tokens.shape[1],
        dimensions=dimensions,
        text_input=text_input,
        text_output=text_output,
    )
    if not weights:
        with torch.device("meta"):
            return ItemTextForCausalLM(config)
    table = unit_vectors(vectors)
    extended = ItemTextForCausalLM(config)
    extended.load_state_dict(model.state_dict(), strict=False)
    extended.set_attn_implementation(cast(str, model.config._attn_implementation))
    extended.tie_weights()
    extended.model.texts.vectors.copy_(table)
    extended.model.texts.sid_tokens.copy_(sid_tokens)
    width = config.hidden_size
    inward = _components(table, width, seed)  # (hidden, dimensions), orthogonal rows as far as there are components
    with torch.no_grad():
        if text_input:
            extended.model.text_in.weight.copy_(
                inward * config.initializer_range * math.sqrt(width)
            )  # as long as a token's row
        if text_output:
            extended.text_out.weight.copy_(
                inward.T * _SHARPNESS / math.sqrt(width)
            )  # the last norm makes states sqrt(width) long
            extended.text_gate.weight.zero_()
            extended.text_gate.bias.fill_(_GATE)
    return extended


def unit_vectors(vectors: np.ndarray) -> torch.Tensor:
    """Vectors less their mean, each of length 1; one that equals the mean stays 0."""
    table = torch.from_numpy(np.array(vectors, dtype=np.float32))
    table -= table.mean(0)
    lengths = table.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-6, table / lengths.clamp(min=1e-6), 0.0)


def _components(table: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """The first principal components as rows, rotated at random into all of `width` dimensions: (width, dimensions)."""
    _, strengths, components = torch.linalg.svd(table.double().T @ table.double())
    count = min(width, int((strengths > 1e-9 * strengths[0]).sum()))
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(noise).Q[:, :count]
    return (rotation @ components[:count]).float()


def item_text_model(model: Any) -> ItemTextForCausalLM | None:
    """The model if it has item texts, else None."""
    base: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    return base if isinstance(base, ItemTextForCausalLM) else None
