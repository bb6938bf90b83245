"""Section `baseline`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from minionerec.config.checks import between, positive
from minionerec.errors import ConfigError

# fmt: off
BaselineName = Literal[
    "popularity", "repeat", "item-knn", "markov", "gru4rec", "caser", "sasrec", "bert4rec", "lightsans", "fearec",
    "fearec-published", "hstu", "trm4rec", "wearec", "pswrec-v5", "pswrec-v12", "pswrec-v13", "pswrec-v13-without-rotation",
    "gru4rec-released", "caser-released", "sasrec-released",
]
# fmt: on


@dataclass
class BaselineConfig:
    """Command `baseline`: a sequential recommender on the same split, with the same metrics.

    Fields from `hidden_size` on are options of some models only. Null leaves the model its own value; a value for a model that
    does not take the option is an error.
    """

    model: BaselineName = "sasrec"
    """Which recommender; docs/baselines.md describes each."""
    protocol: Literal["dataset", "recbole", "wearec"] = "dataset"
    """How examples are cut, padded and ranked: `dataset` takes the run's own splits; `recbole` (Beauty table) and `wearec`
    (LastFM table) cut a file of sequences as those projects do. See docs/baselines.md."""
    sequences: str | None = None
    """File of sequences for `recbole` and `wearec`: one user a line, the user's id, then item ids from 1 in time order."""
    max_history: int = 50
    """Most recent items that a model reads (items)."""
    batch_size: int = 128
    """Examples per optimiser step over all devices (examples; `wearec`: 256)."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, constant."""
    weight_decay: float = 0.0
    """L2 penalty of Adam."""
    epochs: int = 200
    """Most passes over the training examples (epochs)."""
    patience: int = 11
    """Stop at this many epochs without a better NDCG@10 on valid (epochs; `recbole`: 11, `wearec`: 10)."""
    top: int = 50
    """Length of the ranked lists that are stored (items). With `eval.exclude_history`, on the run's own splits, at least
    `eval.num_beams` and as many more as the longest history has."""
    weights: str | None = None
    """A safetensors file, ours or the published code's: rank with these weights instead of training."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the launcher's mixed precision."""
    hidden_size: int | None = None
    """Width of item vectors and states (dimensions)."""
    inner_size: int | None = None
    """Width of the feed-forward layers; of the GRU in `gru4rec` (dimensions)."""
    layers: int | None = None
    """Layers; in `trm4rec`, blocks that alternate."""
    heads: int | None = None
    """Attention heads, or groups of channels in `wearec`."""
    dropout: float | None = None
    """Dropout of embeddings and residual branches (fraction)."""
    attention_dropout: float | None = None
    """Dropout of attention weights; `fearec` has none (fraction)."""
    mask_ratio: float | None = None
    """`bert4rec`: share of a history's items that are masked in training (fraction)."""
    interests: int | None = None
    """`lightsans`: interests that items are pooled into."""
    steps: int | None = None
    """`trm4rec`: cycles of the recursion."""
    positions: bool | None = None
    """`trm4rec`: add a learnt position table to the input."""
    rope: bool | None = None
    """`trm4rec`: rotary positions in the attention."""
    full_backpropagation: bool | None = None
    """`trm4rec`: gradient through all cycles instead of the last."""
    alpha: float | None = None
    """`wearec`: weight of the frequency filter against the wavelet branch (fraction)."""
    phase_weight: float | None = None
    """`pswrec-*`: weight of the phase smoothness in the loss."""
    gamma: float | None = None
    """`pswrec-v13`: where the amplitude scale starts; 0.1 is the published V14."""
    loss: Literal["bce", "softmax"] | None = None
    """`*-released`: binary cross-entropy against one other item drawn uniformly, or cross-entropy among all items."""
    window: int | None = None
    """`caser`: most recent items that the filters see (items)."""
    horizontal_filters: int | None = None
    """`caser`, `caser-released`: filters per height."""
    vertical_filters: int | None = None
    """`caser`, `caser-released`: filters over places."""
    neighbours: int | None = None
    """`item-knn`: most similar items kept per item (items)."""
    shrinkage: float | None = None
    """`item-knn`: added to the denominator of the cosine, so that items seen together once count little (users)."""

    def __post_init__(self) -> None:
        positive("baseline", max_history=self.max_history, batch_size=self.batch_size, learning_rate=self.learning_rate)
        positive("baseline", epochs=self.epochs, patience=self.patience, top=self.top)
        counts = ("hidden_size", "inner_size", "layers", "heads", "interests", "steps", "window", "neighbours")
        for name in (*counts, "horizontal_filters", "vertical_filters"):
            positive("baseline", **{name: getattr(self, name)})
        for name in ("dropout", "attention_dropout", "mask_ratio"):
            between("baseline", 0, 1, **{name: getattr(self, name) or 0.0})
        for name in ("weight_decay", "phase_weight", "shrinkage"):
            between("baseline", 0, math.inf, **{name: getattr(self, name) or 0.0})
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ConfigError(f"baseline.alpha is {self.alpha}; it must be from 0 to 1.")
        if self.protocol != "dataset" and self.sequences is None:
            raise ConfigError(f"baseline.protocol {self.protocol!r} needs baseline.sequences, a file of sequences.")
        if self.protocol == "dataset" and self.sequences is not None:
            raise ConfigError("baseline.sequences is set, but baseline.protocol is dataset, which reads the run's own splits.")


BASELINE_OPTIONS = tuple(  # fields that are options of some models only
    made.name
    for made in dataclasses.fields(BaselineConfig)
    if made.default is None and made.name not in ("sequences", "weights")
)
