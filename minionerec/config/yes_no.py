"""Section `yes_no`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, check_fields


@dataclass
class YesNoConfig:
    """Command `score --train`: the model of section `model` learns to say YES or NO about pairs."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("micro_batch", "row_tokens")  # decide how a step is computed, not its result

    items: Literal["sid", "text"] = "sid"
    """What stands for an item in a prompt: its semantic ID, made by the run's stage `sid`, or its title."""
    batch_size: int = bounded(16, 1, 10**6)
    """Users per optimiser step over all devices; a user's pairs are one tree (users; RecBench: 32 pairs)."""
    micro_batch: int = bounded(16, 1, 10**6)
    """Users computed at once on one device; the result stays the same (users)."""
    row_tokens: int = bounded(1024, 1, 10**7)
    """Distinct tokens in one row (tokens)."""
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
