"""Section `prompts`."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from minionerec.config.checks import positive


@dataclass
class PromptsConfig:
    """How every example is put into words, in SFT, RL and evaluation alike. docs/tasks.md shows each."""

    style: Literal["plain", "alpaca", "chat"] = "plain"
    """What stands around the words: `plain` nothing; `alpaca` the released code's header, with instruction, input and response;
    `chat` the chat template of the model's tokenizer (paper: alpaca)."""
    wording: Literal["plain", "released"] | None = None
    """Whose sentences: ours, which are short and let histories share their computation, or the released code's. null: the
    released code's where `sft.tasks` is released, otherwise ours."""
    category: str = "items"
    """What the released code's sentences call the items, e.g. office products."""
    max_tokens: int | None = None
    """Longest example, prompt and completion; the oldest items of a longer history and the last words of a longer text are left
    out, and text that is to be written is cut. null: what the model can read (tokens; released: 512)."""
    eval_style: Literal["same", "released"] = "same"
    """`released` asks in evaluation with the sentence of the released code's evaluation script, which no training example has:
    the mistake to measure, not to make."""

    def __post_init__(self) -> None:
        positive("prompts", max_tokens=self.max_tokens)

    def for_training(self) -> "PromptsConfig":
        """The same prompts without `eval_style`, as a model is trained with them."""
        return dataclasses.replace(self, eval_style="same")
