"""Section `yes_no`."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, check_fields
from minionerec.errors import ConfigError


@dataclass
class YesNoConfig:
    """Command `score --train`: the model of section `model` learns from pairs what users like."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("micro_batch", "row_tokens")  # decide how a step is computed, not its result

    scheme: Literal["yes-no", "matching"] = "yes-no"
    """`yes-no`: the model says YES or NO about a candidate, and learns by cross-entropy. `matching`: it makes a vector of the
    history and one of the candidate, and learns that their cosine is the label, by its squared error."""
    items: Literal["sid", "text", "id", "vector"] = "sid"
    """What stands for an item in a prompt: its semantic ID, made by the run's stage `sid`; its title; a token of its own, whose
    row is learnt (`id`); or its text vector, frozen, through one linear layer (`vector`; a Qwen2 only)."""
    pooling: Literal["last", "mean"] = "last"
    """`matching`: a text's vector is the last layer's state of its last token, or the mean over all of its tokens."""
    next_code: float = bounded(0.0, 0, 1000)
    """`yes-no` with items `sid` or `id`: weight of a second loss, the cross-entropy of the items' tokens in the history, each
    from what stands before it; 0 for none (RecBench: 1)."""
    train: Literal["full", "lora"] = "full"
    """What is trained: all weights, or low-rank adapters and the rows of the items' tokens. The saved model is always whole; an
    adapter is saved next to it."""
    lora_rank: int = bounded(32, 1, 8192)
    """Rank of the adapters' matrices (dimensions; RecBench: 32)."""
    lora_alpha: int = bounded(128, 1, 65_536)
    """The adapters' output is scaled by alpha / rank (RecBench: 128)."""
    lora_dropout: float = bounded(0.1, 0, 1, below=True)
    """Dropout of the adapters' input (fraction; RecBench: 0.1)."""
    lora_targets: list[str] | None = None
    """Names of the linear layers that get adapters, such as q_proj; null means all but the head (RecBench: q_proj,
    v_proj)."""
    tune_from: int | None = bounded(None, -512, 512)
    """Freeze the layers below this one, counted from 0; a negative number counts from the end, so -2 trains the last two. With
    `items: text` the embeddings are frozen too. null freezes nothing."""
    batch_size: int = bounded(16, 1, 10**6)
    """Users per optimiser step over all devices; a user's pairs are one tree (users; RecBench: 32 pairs)."""
    micro_batch: int = bounded(16, 1, 10**6)
    """Users computed at once on one device; the result stays the same (users)."""
    row_tokens: int = bounded(1024, 1, 10**7)
    """Distinct tokens in one row. In a row that is shorter than a history's prompt, each candidate computes the history again
    (tokens)."""
    epochs: int = bounded(20, 1, 100_000)
    """Passes over the train users at most (epochs)."""
    patience: int = bounded(4, 1, 10**6)
    """Stop after this many epochs without a better GAUC on valid; the best model is kept (epochs; RecBench: 2)."""
    learning_rate: float = bounded(1e-3, 1e-12, 1)
    """Peak of AdamW's learning rate, which falls to 0 linearly (RecBench: 1e-4 with LoRA, constant)."""
    warmup: int = bounded(10, 0, 10**7)
    """Steps over which the learning rate rises (steps)."""
    weight_decay: float = bounded(0.01, 0, 10)
    """AdamW's weight decay."""
    max_grad_norm: float = bounded(1.0, 0, 10**6, above=True)
    """Gradients are scaled down to this norm."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the mixed precision of the launcher."""

    def __post_init__(self) -> None:
        check_fields("yes_no", self)
        for option in dataclasses.fields(self):
            if option.name.startswith("lora_") and self.train != "lora" and getattr(self, option.name) != option.default:
                raise ConfigError(
                    f"yes_no.{option.name} is set, but yes_no.train is {self.train}; it has an effect with lora only."
                )
        if self.pooling != "last" and self.scheme != "matching":
            raise ConfigError(f"yes_no.pooling is {self.pooling}, but yes_no.scheme is {self.scheme}, which makes no vectors.")
        if self.next_code and (self.scheme, self.items) not in (("yes-no", "sid"), ("yes-no", "id")):
            raise ConfigError(
                f"yes_no.next_code is {self.next_code:g}, but yes_no.scheme is {self.scheme} and yes_no.items {self.items}: "
                "there are no items' tokens that yes-no could predict. Leave it out."
            )
        if self.train == "lora" and self.items == "vector":
            raise ConfigError(
                "yes_no.train is lora, but yes_no.items is vector: the layer in front of the vectors is new and has to be "
                "trained whole. Set yes_no.train full, with yes_no.tune_from if less shall be trained."
            )

    @property
    def name(self) -> str:
        """Of the trained model's folder: the models of a run differ in their scheme or in their items."""
        return self.items if self.scheme == "yes-no" else f"matching-{self.items}"
