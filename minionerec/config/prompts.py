"""Section `prompts`."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from minionerec.config.checks import bounded, check_fields


@dataclass
class PromptsConfig:
    """How every example is put into words, in SFT, RL and evaluation alike; docs/tasks.md has examples."""

    style: Literal["plain", "alpaca", "chat"] = "plain"
    """What stands around the words: nothing (`plain`), the released code's header with instruction, input and response
    (`alpaca`), or the chat template of the model's tokenizer (`chat`; paper: alpaca)."""
    wording: Literal["plain", "released", "several"] | None = None
    """Whose sentences: ours, which are short and let histories share their computation, or the released code's. `several` has
    several of ours for each task: SFT draws one for each row and epoch, RL and evaluation ask with the first (LC-Rec). null
    takes the released code's if `sft.tasks` is released, otherwise ours."""
    category: str = "items"
    """What the released code's sentences call the items, e.g. office products."""
    max_tokens: int | None = bounded(None, 1, 10**7)
    """Longest example, prompt and completion together. A longer history loses its oldest items, a longer text its last words;
    an answer that is a text is cut. null: what the model can read (tokens; released: 512)."""
    eval_style: Literal["same", "released"] = "same"
    """`released` asks in evaluation with the sentence of the released code's evaluation script, which no training example has.
    Its only use is to measure that mistake."""

    def __post_init__(self) -> None:
        check_fields("prompts", self)

    def for_training(self) -> "PromptsConfig":
        """The same prompts without `eval_style`, as a model is trained with them."""
        return dataclasses.replace(self, eval_style="same")
