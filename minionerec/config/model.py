"""Section `model`."""

from dataclasses import dataclass
from typing import Literal

from minionerec.config.checks import bounded, check_fields, path
from minionerec.errors import ConfigError


@dataclass
class ModelConfig:
    """The language model that both training stages share."""

    init: Literal["from_scratch", "from_pretrained"] = "from_scratch"
    """`from_scratch` makes a small Qwen2 and its tokenizer from the catalog; `from_pretrained` loads `path`."""
    path: str | None = path()
    """Causal LM for `from_pretrained`: a folder, a GGUF file or a folder with one, `smollm2-135m` after `minionerec model get
    smollm2-135m`, or a hub name (paper: Qwen2.5-1.5B-Instruct)."""
    hidden_size: int = bounded(192, 1, 32_768)
    """Width of the from-scratch model (dimensions)."""
    intermediate_size: int = bounded(512, 1, 262_144)
    """Width of its feed-forward layers (dimensions)."""
    layers: int = bounded(4, 1, 512)
    """Its transformer blocks."""
    heads: int = bounded(4, 1, 1024)
    """Its attention heads; they divide `hidden_size`."""
    vocabulary: int = bounded(2000, 300, 10**6)
    """Byte-level BPE entries learnt from the catalog's text and the prompts, SID tokens not counted (tokens)."""
    sid_init: Literal["text", "mean", "random"] = "mean"
    """Where the rows of new SID tokens begin. `text`: at the mean token row of titles that carry the code, level by level on
    what the levels before leave over; `mean`: around the mean of all old rows; `random`: as the architecture draws weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of a pretrained model's weights in SFT; from-scratch models and RL keep float32 weights, and `eval.dtype` is
    the evaluation's."""
    text_input: bool = False
    """Add each item's text vector (of `sid.encoder`, or `sid.vectors`), through a learnt linear layer, to the input of the
    token that completes its SID. From-scratch models only (paper: no)."""
    text_output: bool = False
    """Mix a second distribution over the catalog into the model's: softmax of the last state, projected, times every item's
    text vector; a learnt gate weighs it. So items that were never seen in training can be recommended. Only from scratch;
    needs `normalise_over: catalog` in SFT and evaluation; RL, exports and `eval.oracle_examples`
    refuse it (paper: no)."""

    def __post_init__(self) -> None:
        check_fields("model", self)
        if self.init == "from_pretrained" and not self.path:
            raise ConfigError(
                "model.init is from_pretrained, but model.path is not set: name a folder, a GGUF file or a hub model."
            )
        if self.init == "from_scratch" and self.path:
            raise ConfigError(
                f"model.path is {self.path}, but model.init is from_scratch, which reads nothing from there. Set model.init "
                "from_pretrained, or leave model.path out."
            )
        if self.init == "from_pretrained" and self.item_texts:
            name = "text_input" if self.text_input else "text_output"
            raise ConfigError(
                f"model.{name} is true, but model.init is from_pretrained: item texts are built into from-scratch models only. "
                "Set it to false; pretrained models read titles in the history (sft.tasks history_title_to_sid)."
            )
        if self.init == "from_scratch" and self.dtype != "float32":
            raise ConfigError(
                f"model.dtype is {self.dtype}, but a model from scratch keeps float32 weights. Leave it out; sft.bf16 "
                "computes in bfloat16."
            )
        if self.hidden_size % (2 * self.heads):
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} does not split into {self.heads} heads of even width (model.heads)."
            )

    @property
    def item_texts(self) -> bool:
        """Whether the model has the items' text vectors, at the input or at the output."""
        return self.text_input or self.text_output
