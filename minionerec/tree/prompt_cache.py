"""A batch of prompts computed once, to which tree tokens are added: what beam search and the exact scores have in common."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from minionerec.errors import ConstraintError
from minionerec.tree.architecture import check_length, check_model
from minionerec.tree.forward import attention_bias
from minionerec.tree.leaf_component import with_leaf_component
from minionerec.tree.trie import NO_TOKEN, CatalogTrie

Normalise = Literal["vocabulary", "catalog"]


class PrefixModel(Protocol):
    """What the search needs of a batch of prompts that some model has read; `PromptCache` says what each part is."""

    trie: CatalogTrie
    visible: torch.Tensor
    last: torch.Tensor

    def extend(self, tokens: torch.Tensor, depth: int | torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
        """Add tree tokens and compute their states."""

    def child_logprobs(
        self, level: int, nodes: torch.Tensor, states: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Numbers, tokens and log-probabilities of the legal next tokens."""

    def select(self, rows: torch.Tensor) -> "PrefixModel":
        """Some prompts of the batch, without tree tokens."""

    def drop_tree_tokens(self) -> None:
        """Drop all tree tokens; the prompts stay."""


# Logits over the vocabulary that are held at once; `_vocabulary` holds up to three copies: the logits, those over the
# temperature, which searches leave at 1, and their log-probabilities in float32. At Qwen2.5's 152,000 entries 2**24, 64 MiB,
# are 110 rows at a time: little memory, and on a CPU enough rows for an efficient matrix product. On a GPU the product reads
# the whole head for each part, so parts are larger there.
_HEAD_ELEMENTS, _HEAD_ELEMENTS_ON_A_GPU = 1 << 24, 1 << 27
# Models whose logits are the last hidden state times the head and nothing else: rows of the head can be left out.
_PLAIN_HEADS = frozenset({"gemma", "llama", "mistral", "qwen2", "qwen2_item_text", "qwen3"})


def held_logits(rows: int, vocabulary: int, on_gpu: bool) -> int:
    """How many logits over a vocabulary are held at once if so many rows of them are asked for."""
    return min(rows, max(1, (_HEAD_ELEMENTS_ON_A_GPU if on_gpu else _HEAD_ELEMENTS) // vocabulary)) * vocabulary


def plain_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits can be computed for some tokens only."""
    return model.config.model_type in _PLAIN_HEADS


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Whether a model reads prompts by an encoder of their own."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _vocabulary_size(model: PreTrainedModel) -> int:
    return cast(torch.Tensor, model.get_input_embeddings().weight).shape[0]  # an adapted embedding counts no rows itself


class Checked(NamedTuple):
    """What a search asks, checked.

    Attributes:
        model: without a wrapping by PEFT; the adapters are inside.
        attention_mask: (batch, length), made if there was none.
        visible: (batch, length) bool, False on padding.
        lengths: (batch,) prompt tokens that are not padding.
        longest: tokens of the longest path that are computed.
    """

    model: PreTrainedModel
    attention_mask: torch.Tensor
    visible: torch.Tensor
    lengths: torch.Tensor
    longest: int


def check_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    trie: CatalogTrie,
    normalise_over: Normalise,
) -> Checked:
    """Refuse a search that cannot be computed; `PromptCache.compute` lists the cases."""
    if model.training:
        raise ConstraintError("The model is in training mode, so dropout would falsify the scores; call model.eval() first.")
    if not len(input_ids):
        raise ConstraintError("There is no prompt in the batch.")
    model = getattr(model, "get_base_model", lambda: model)()  # of a PEFT model: its adapters are inside
    encoder_decoder = is_encoder_decoder(model)
    if encoder_decoder:
        from minionerec.tree.encoder_decoder import check_t5  # which builds on this module

        check_t5(model)
    else:
        check_model(model)
    vocabulary = _vocabulary_size(model)
    if trie.highest_token >= vocabulary:
        raise ConstraintError(
            f"The trie holds token id {trie.highest_token}, but the model's vocabulary has {vocabulary} entries. "
            "The model lacks this catalog's SID tokens: load the checkpoint that was trained with them."
        )
    if normalise_over not in ("vocabulary", "catalog"):
        raise ConstraintError(f"normalise_over is {normalise_over!r}; it must be 'vocabulary' or 'catalog'.")
    if normalise_over == "catalog":
        trie.check_normalisable()
    if trie.view is not None and trie.view.requests not in (1, len(input_ids)):
        raise ConstraintError(f"The trie is a view of {trie.view.requests} requests, but there are {len(input_ids)} prompts.")
    if trie.guide is not None:
        trie.guide.check(trie, len(input_ids), normalise_over)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    visible = attention_mask.bool()
    if input_ids.shape[1] == 0 or not bool(visible[:, -1].all()) or bool((visible[:, :-1] & ~visible[:, 1:]).any()):
        raise ConstraintError("Prompts must not be empty and must be padded on the left.")
    lengths = visible.sum(-1)
    longest = int(lengths.max()) + trie.depth - 1
    if not encoder_decoder:  # whose distances have no limit
        check_length(model, longest, windows=trie.depth > 1)
    return Checked(model, attention_mask, visible, lengths, longest)


@dataclass
class PromptCache:
    """A decoder-only model whose key-value cache holds the prompts of a batch and the tree tokens added to them.

    The seam to the model: search, sampling and exact scores use `compute`, `extend`, `child_logprobs`, `select` and
    `drop_tree_tokens`, the attributes below, and nothing else of a model's cache.
    `encoder_decoder.T5PromptCache` offers the same for an encoder that reads the prompt and a decoder that holds tree tokens
    only; `compute` chooses.

    "States" are what a token gives for the prediction of its children: hidden states if rows of the model's head can be picked
    (`plain_head`), else logits over the vocabulary.

    Attributes:
        model: without a wrapping by PEFT; the adapters are inside.
        trie: the valid SIDs, or a view with one filter or with one per prompt.
        normalise_over: what the probabilities of a step add up over.
        cache: keys and values, first of the prompts, then of the tree tokens.
        visible: (batch, prompt length) bool, False on padding.
        lengths: (batch,) prompt tokens that are not padding.
        longest: tokens of the longest path that are computed: of the longest prompt and of a SID without its last token.
        last: (batch, 1, hidden or vocabulary), the states of each prompt's last token.
        head_elements: logits over the vocabulary that are held at once; 0 for as many as suit the device.
        static: shapes never depend on what the tensors hold: children are padded to the trie's largest fan-out.
    """

    model: PreTrainedModel
    trie: CatalogTrie
    normalise_over: Normalise
    cache: Cache
    visible: torch.Tensor
    lengths: torch.Tensor
    longest: int
    last: torch.Tensor
    head_elements: int = 0
    static: bool = False

    def __post_init__(self) -> None:
        """Choose what was not given."""
        self.head_elements = self.head_elements or (_HEAD_ELEMENTS_ON_A_GPU if self.visible.is_cuda else _HEAD_ELEMENTS)

    @classmethod
    def compute(
        cls,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        trie: CatalogTrie,
        normalise_over: Normalise,
        written: bool = False,
    ) -> "PromptCache":
        """Compute the prompts, each once.

        Args:
            written: leaves out a second distribution of the model's own (`tree/leaf_component.py`).

        Raises:
            ConstraintError: the model is in training mode, its layers do not follow a tree mask (`encoder_decoder.check_t5`),
                there is no prompt, a prompt is empty, right-padded or too long for the model, the trie's tokens are outside the
                model's vocabulary, the trie is a view of another number of requests, its SIDs cannot be normalised over the
                catalog, or its prior does not fit (`Prior.check` lists the cases).
        """
        from minionerec.tree.encoder_decoder import T5PromptCache  # these build on this class
        from minionerec.tree.long_paths import LONG, LongPathCache

        checked = check_search(model, input_ids, attention_mask, trie, normalise_over)
        kind: type[PromptCache] = LongPathCache if trie.depth > LONG else cls
        kind = T5PromptCache if is_encoder_decoder(checked.model) else kind
        prompts = kind.begin(checked, input_ids, trie, normalise_over)
        if not written:
            prompts.trie = with_leaf_component(checked.model, trie, prompts.last[:, 0], normalise_over)
        return prompts

    @classmethod
    def begin(cls, checked: Checked, input_ids: torch.Tensor, trie: CatalogTrie, normalise_over: Normalise) -> "PromptCache":
        """Compute checked prompts; the first part of `compute`."""
        # A cache made from the model's configuration would let layers with a window drop tokens that stand side by side in the
        # tree. This one keeps all tokens in every layer, which gives the same numbers as long as no path exceeds the window;
        # longer ones are refused. A leaf is never computed. Without tree tokens (depth 1) a window does no harm.
        model, mask, visible = checked.model, checked.attention_mask, checked.visible
        prompts = cls(model, trie, normalise_over, DynamicCache(), visible, checked.lengths, checked.longest, torch.empty(0))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        prompts.last = prompts.write(input_ids, mask, positions, last_only=True)
        return prompts

    def select(self, rows: torch.Tensor) -> "PromptCache":
        """The cache of some prompts of the batch, without tree tokens; this one must not be used again.

        Args:
            rows: (prompts,) int64, which prompts.
        """
        self.drop_tree_tokens()
        self.cache.batch_select_indices(rows)
        return type(self)(
            self.model,
            self.trie.requests(rows),
            self.normalise_over,
            self.cache,
            self.visible[rows],
            self.lengths[rows],
            self.longest,
            self.last[rows],
            self.head_elements,
            self.static,
        )

    def drop_tree_tokens(self) -> None:
        """Drop all tree tokens from the cache; the prompts stay."""
        self.cache.crop(-(self.cache.get_seq_length() - self.visible.shape[1]))

    def extend(self, tokens: torch.Tensor, depth: int | torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
        """Add tree tokens to the cache and compute their states.

        Args:
            tokens: (batch, nodes) int64; `NO_TOKEN` where a SID has ended.
            depth: 0-based level of the nodes, one number or (nodes,).
            ancestors: (batch, nodes, tree tokens so far including these) bool, True for a node's ancestors and itself.

        Returns:
            the nodes' states, (batch, nodes, hidden or vocabulary).

        Raises:
            ConstraintError: the model's attention cannot take a tree mask, or a path is longer than its window.
        """
        batch, nodes = tokens.shape
        prompt_tokens = self.visible[:, None, :].expand(batch, nodes, -1)
        allowed = torch.cat([prompt_tokens, ancestors], dim=-1)[:, None]  # (batch, 1, nodes, prompt + tree)
        # A node's position is its depth in the tree, whatever its place in the row: so it computes what it would compute alone.
        positions = (self.lengths[:, None] + depth).expand(batch, nodes)
        # An ended SID is padded with some token; `child_logprobs` gives its only child, the same end, log-probability 0.
        return self.write(tokens.clamp(min=0), attention_bias(self.model, allowed, self.longest), positions)

    def write(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        last_only: bool = False,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write tokens to the cache.

        Args:
            input_ids: (batch, tokens).
            mask: as the model's attention reads it: (batch, tokens) of prompts, or (batch, 1, tokens, tokens in the cache).
            positions: (batch, tokens).
            last_only: only the last token's states are wanted.
            embeddings: (batch, tokens, hidden) of the tokens, computed before; None leaves them to the model.

        Returns:
            their states, (batch, tokens or 1, hidden or vocabulary).
        """
        arguments = {"attention_mask": mask, "position_ids": positions, "past_key_values": self.cache, "use_cache": True}
        arguments |= {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        if plain_head(self.model):
            hidden = self.model.base_model(**arguments).last_hidden_state
            return hidden[:, -1:] if last_only else hidden
        return self.model(logits_to_keep=int(last_only), **arguments).logits

    def child_logprobs(
        self, level: int, nodes: torch.Tensor, states: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities of the legal next tokens.

        Args:
            level: level of the children.
            nodes: (batch, nodes) int64 numbers of nodes of the level above; negative where a node is missing.
            states: (batch, nodes, hidden or vocabulary) of these nodes: `last` for the root, else from `extend`.
            temperature: divides the logits.

        Returns:
            per node and child, (batch, nodes, most children): node numbers; tokens; float32 log-probabilities in nats, 0 where
            a SID has ended, -inf where there is no child.
        """
        width = self.trie.fan_outs[level] if self.static else None
        child_nodes, tokens, valid = self.trie.children(level, nodes, width)
        normalised = self._catalog if self.normalise_over == "catalog" else self._vocabulary
        steps = normalised(level, tokens, valid, states, temperature)
        # Rounding may leave a log-probability a hair above 0, which would break the certificate's "scores only fall".
        steps = steps.clamp(max=0.0).masked_fill(tokens == NO_TOKEN, 0.0).masked_fill(~valid, -torch.inf)
        return child_nodes, tokens, steps

    def _vocabulary(
        self, level: int, tokens: torch.Tensor, valid: torch.Tensor, states: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Log-probabilities of `tokens`, (batch, nodes, children), normalised over the vocabulary."""
        del level, valid
        rows = max(1, self.head_elements // _vocabulary_size(self.model))
        steps = []
        for some_states, some_tokens in zip(states.flatten(0, 1).split(rows), tokens.flatten(0, 1).split(rows), strict=True):
            logits = self._logits(some_states)
            logits = logits if temperature == 1.0 else logits.float() / temperature
            # One kernel that reads bfloat16 and computes in float32; logsumexp would be seven, each over all the logits.
            steps.append(logits.log_softmax(-1, dtype=torch.float32).gather(-1, some_tokens.clamp(min=0)))
        return torch.cat(steps).view(tokens.shape)

    def _catalog(
        self, level: int, tokens: torch.Tensor, valid: torch.Tensor, states: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Log-probabilities of `tokens`, (batch, nodes, children), normalised over each node's children."""
        alphabet = self.trie.alphabets[level]
        if not len(alphabet):  # every SID has ended
            return torch.zeros(tokens.shape, device=tokens.device)
        # The head's rows of the level's alphabet serve all nodes in one matrix product; each node then picks its children's.
        column = torch.searchsorted(alphabet, tokens).clamp(max=len(alphabet) - 1)
        logits = self._logits(states, alphabet).gather(-1, column).float() / temperature
        return logits.masked_fill(~valid, torch.finfo(torch.float32).min).log_softmax(-1)

    def _logits(self, states: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of some tokens, or of the vocabulary: (..., tokens)."""
        if not plain_head(self.model):
            return states if tokens is None else states[..., tokens]
        head = cast(torch.nn.Linear, self.model.get_output_embeddings())
        if tokens is None:
            return head(states)
        if type(head) is not torch.nn.Linear:  # an adapted or quantised head has no rows to pick
            return head(states)[..., tokens]
        bias = None if head.bias is None else head.bias[tokens]
        return torch.nn.functional.linear(states, head.weight[tokens], bias)
