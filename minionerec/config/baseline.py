"""Section `baseline`, and the one table of the baselines.

To add a baseline, write its class into `minionerec/model/sequential/` and give it a line in `NEURAL_BASELINES`. Everything else
reads this table: the names that the command line accepts, the labels on pages, those who make a model, and the tests. The class
stands here by name, so that reading a configuration, or the labels, does not import torch.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from minionerec.config.checks import bounded, check_fields, path
from minionerec.config.components import ComponentName
from minionerec.errors import ConfigError


class Baseline(NamedTuple):
    """A line of the table.

    Attributes:
        label: its name for display.
        implementation: its class, as module and name below `minionerec`. The options that it takes, and what is claimed of
            it (causal, padding_free, ...), stand on the class.
    """

    label: str
    implementation: str


TRIVIAL_BASELINES = {  # counted, not trained; every run evaluates those of `FLOORS`
    "popularity": Baseline("Popularity", "baselines.trivial.Popularity"),
    "repeat": Baseline("Repeat last", "baselines.trivial.RepeatLast"),
    "item-knn": Baseline("Item-kNN", "baselines.trivial.ItemKNN"),
    "markov": Baseline("Markov chain", "baselines.trivial.MarkovChain"),
    "skip": Baseline("Skip transitions", "baselines.trivial.SkipTransitions"),
    "text": Baseline("Text neighbours", "baselines.trivial.TextNeighbours"),
    "mixture": Baseline("Mixture of counts (and text)", "baselines.trivial.CacheMixture"),
}
NEURAL_BASELINES = {
    "gru4rec": Baseline("GRU4Rec", "model.sequential.gru4rec.GRU4Rec"),
    "gru4rec-released": Baseline("GRU4Rec (MiniOneRec's)", "model.sequential.released.ReleasedGRU4Rec"),
    "caser": Baseline("Caser", "model.sequential.caser.Caser"),
    "caser-released": Baseline("Caser (MiniOneRec's)", "model.sequential.released.ReleasedCaser"),
    "sasrec": Baseline("SASRec", "model.sequential.sasrec.SASRec"),
    "sasrec-sampled": Baseline("SASRec + sampled softmax", "model.sequential.sasrec_sampled.SampledSASRec"),
    "sasrec-released": Baseline("SASRec (MiniOneRec's)", "model.sequential.released.ReleasedSASRec"),
    "bert4rec": Baseline("BERT4Rec", "model.sequential.bert4rec.BERT4Rec"),
    "lightsans": Baseline("LightSANs", "model.sequential.lightsans.LightSANs"),
    "fearec": Baseline("FEARec", "model.sequential.fearec.FEARec"),
    "fearec-published": Baseline("FEARec (as published)", "model.sequential.fearec.FEARecPublished"),
    "hstu": Baseline("HSTU", "model.sequential.hstu.HSTU"),
    "trm4rec": Baseline("TRM4Rec", "model.sequential.trm4rec.TRM4Rec"),
    "wearec": Baseline("WEARec", "model.sequential.wearec.WEARec"),
    "pswrec-v5": Baseline("PSWRec V5", "model.sequential.pswrec.PSWRecV5"),
    "pswrec-v12": Baseline("PSWRec V12", "model.sequential.pswrec.PSWRecV12"),
    "pswrec-v13": Baseline("PSWRec V13", "model.sequential.pswrec.PSWRecV13"),
    "pswrec-v13-without-rotation": Baseline("PSWRec V13 without rotation", "model.sequential.pswrec.PSWRecV13WithoutRotation"),
}
CODED_BASELINES = {  # neural, too, but made from codes of a run's items: its semantic IDs, or codes of its item vectors
    "rpg": Baseline("RPG", "baselines.coded.rpg.RPG"),
    "tiger": Baseline("TIGER", "baselines.coded.tiger.TIGER"),
    "lazy": Baseline("Lazy decoder (OneRec-V2)", "baselines.coded.lazy.LazyDecoder"),
    "liger": Baseline("LIGER", "baselines.coded.liger.LIGER"),
}
GENERATIVE_BASELINES = ("tiger", "lazy", "liger")  # those of them that write SIDs code by code, and so leave no vectors
PLAIN_FLOORS = ("popularity", "repeat")  # have no options and take no time: evaluation never reads them from a stored baseline
FLOORS = (*PLAIN_FLOORS, "skip", "text", "mixture")  # what every run is held against, as far as its data allow it
BASELINES = TRIVIAL_BASELINES | NEURAL_BASELINES | CODED_BASELINES
# Those that leave vectors for other stages: assistants, LETTER's collaborative vectors, the collaborative reward.
HELPERS = tuple(name for name in NEURAL_BASELINES | CODED_BASELINES if name not in GENERATIVE_BASELINES)


if TYPE_CHECKING:  # a type checker wants the names written out
    BaselineName = str
    HelperName = str
    TitleHelperName = str
else:
    BaselineName = Literal[tuple(BASELINES)]
    HelperName = Literal[HELPERS]
    TitleHelperName = Literal[("popularity", *HELPERS)]


@dataclass
class BaselineConfig:
    """Command `baseline`: a sequential recommender on the same split, with the same metrics.

    From `hidden_size` on, each field is an option of some models only. Null keeps the model's own default. Setting an option
    that the model does not take is an error.
    """

    model: BaselineName = "sasrec"
    """The recommender; docs/baselines.md describes each."""
    protocol: Literal["dataset", "recbole", "wearec"] = "dataset"
    """How examples are cut, padded and ranked: `dataset` takes the run's own splits; `recbole` (Beauty table) and `wearec`
    (LastFM table) cut a file of sequences as those projects do. See docs/baselines.md."""
    sequences: str | None = path()
    """File of sequences for `recbole` and `wearec`: one user a line, the user's id, then item ids from 1 in time order."""
    max_history: int = bounded(50, 1, 100_000)
    """How many of the most recent items a model reads (items)."""
    batch_size: int = bounded(128, 1, 10**7)
    """Examples per optimiser step over all devices (examples; `wearec`: 256)."""
    learning_rate: float = bounded(1e-3, 1e-12, 1)
    """Learning rate of Adam, constant."""
    weight_decay: float = bounded(0.0, 0, 10)
    """L2 penalty of Adam."""
    epochs: int = bounded(200, 1, 10**6)
    """Passes over the training examples at most (epochs)."""
    patience: int = bounded(11, 1, 10**6)
    """Stop after this many epochs without a better NDCG@10 on valid (epochs; `recbole`: 11, `wearec`: 10)."""
    top: int = bounded(50, 1, 100_000)
    """Length of the stored ranked lists (items). With `eval.exclude_history` on the run's own splits, lists hold at least
    `eval.num_beams` items plus the length of the longest history. `tiger`, `lazy` and `liger` rank what their search
    finds (`liger` also cold items); it has as many beams, but 20 plus the longest history at least. Their evaluation
    searches anew, with `eval.num_beams`."""
    valid_examples: int | None = bounded(None, 1, 10**9)
    """Rows of valid, drawn by the seed, that choose the best epoch (rows; null: all). The figures at the end are of all rows;
    `tiger`, `lazy` and `liger` may take longer to rank valid than to train an epoch."""
    weights: str | None = path()
    """A safetensors file of ours or of the published code: rank with these weights instead of training. `minionerec baseline
    import` makes one of a published .pt file."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the mixed precision of the launcher."""
    hidden_size: int | None = bounded(None, 1, 65_536)
    """Width of item vectors and states (dimensions)."""
    inner_size: int | None = bounded(None, 1, 262_144)
    """Width of the feed-forward layers; of the GRU in `gru4rec` (dimensions)."""
    layers: int | None = bounded(None, 1, 512)
    """Layers; in `trm4rec`, blocks that alternate."""
    heads: int | None = bounded(None, 1, 1024)
    """Attention heads, or groups of channels in `wearec`."""
    dropout: float | None = bounded(None, 0, 1, below=True)
    """Dropout of embeddings and residual branches (fraction)."""
    attention_dropout: float | None = bounded(None, 0, 1, below=True)
    """Dropout of attention weights; `fearec` has none (fraction)."""
    head_size: int | None = bounded(None, 1, 65_536)
    """`tiger`, `liger`: width of each attention head (dimensions)."""
    buckets: int | None = bounded(None, 1, 10_000)
    """`tiger`, `liger`: parts of a batch, by the length of the histories, that are padded apart; the loss is the batch's
    (parts; null: 1)."""
    digits: int | None = bounded(None, 1, 1024)
    """`rpg`: codes per item."""
    temperature: float | None = bounded(None, 1e-4, 1000)
    """`rpg`, `liger`: what cosines are divided by."""
    dense_weight: float | None = bounded(None, 0, 10**6)
    """`liger`: weight of the dense retrieval's cross-entropy beside that of the codes; 0 leaves a `tiger` that reads text
    vectors, ranked by its beams."""
    input_dropout: float | None = bounded(None, 0, 1, below=True)
    """`liger`: dropout of what the encoder reads (fraction)."""
    mask_ratio: float | None = bounded(None, 0, 1, below=True)
    """`bert4rec`: share of a history's items that are masked in training (fraction)."""
    interests: int | None = bounded(None, 1, 65_536)
    """`lightsans`: number of interests that items are pooled into."""
    steps: int | None = bounded(None, 1, 10_000)
    """`trm4rec`: cycles of the recursion."""
    positions: bool | None = None
    """`trm4rec`: add a learnt position table to the input."""
    rope: bool | None = None
    """`trm4rec`: rotary positions in the attention."""
    full_backpropagation: bool | None = None
    """`trm4rec`: gradient through all cycles instead of the last."""
    alpha: float | None = bounded(None, 0, 1)
    """`wearec`: weight of the frequency filter against the wavelet branch (fraction)."""
    phase_weight: float | None = bounded(None, 0, 10**6)
    """`pswrec-*`: weight of the phase smoothness in the loss."""
    gamma: float | None = bounded(None, -1000, 1000)
    """`pswrec-v13`: initial value of the amplitude scale; 0.1 makes it the published V14."""
    loss: Literal["bce", "softmax", "sampled"] | None = None
    """`softmax`: cross-entropy over all items. `*-released` also take `bce`, binary cross-entropy against one other item, drawn
    uniformly; `sasrec` and `sasrec-sampled` also take `sampled`, cross-entropy over the target and `negatives` drawn items."""
    negatives: int | None = bounded(None, 1, 10**6)
    """`sasrec`, `sasrec-sampled` with `loss: sampled`: items drawn per example, uniformly; with as many as the catalog has, the
    loss is the one over all items (items; null: 256)."""
    window: int | None = bounded(None, 1, 100_000)
    """`caser`: most recent items that the filters see (items)."""
    horizontal_filters: int | None = bounded(None, 1, 65_536)
    """`caser`, `caser-released`: filters per height."""
    vertical_filters: int | None = bounded(None, 1, 65_536)
    """`caser`, `caser-released`: filters over places."""
    neighbours: int | None = bounded(None, 1, 10**6)
    """`item-knn`: most similar items kept per item (items)."""
    shrinkage: float | None = bounded(None, 0, 10**9)
    """`item-knn`: added to the denominator of the cosine, so that items seen together once count little (users)."""
    components: list[ComponentName] | None = None
    """`mixture`: what it is made of; null for all counts, and `text` if the run has item vectors (docs/baselines.md)."""
    sequential: BaselineName | None = None
    """`mixture`: the baseline behind the component `sequential`, trained on the run's own splits before. Counting ones and
    those that know items by codes are refused."""

    def __post_init__(self) -> None:
        check_fields("baseline", self)
        if self.protocol != "dataset" and self.sequences is None:
            raise ConfigError(f"baseline.protocol {self.protocol!r} needs baseline.sequences, a file of sequences.")
        if self.protocol == "dataset" and self.sequences is not None:
            raise ConfigError("baseline.sequences is set, but baseline.protocol is dataset, which reads the run's own splits.")
        if self.protocol != "dataset" and self.model in CODED_BASELINES:
            raise ConfigError(
                f"baseline.model {self.model} needs semantic IDs or item vectors, which a file of sequences does not have "
                f"(baseline.protocol {self.protocol}). Use it on a run's own splits."
            )
        if self.weights is not None and self.model in CODED_BASELINES:
            raise ConfigError(f"baseline.weights is set, but weights of {self.model} belong to the codes of one catalog.")
        if self.valid_examples is not None and (self.weights is not None or self.model in TRIVIAL_BASELINES):
            raise ConfigError(
                f"baseline.valid_examples is {self.valid_examples}, but no epoch is chosen: "
                + ("the weights are given." if self.weights is not None else f"{self.model} is not trained.")
            )
        if self.components == []:
            raise ConfigError("baseline.components is an empty list; name one component at least, or leave it out.")
        if self.protocol != "dataset" and (self.model == "text" or "text" in (self.components or ())):
            field = "model" if self.model == "text" else "components"
            raise ConfigError(
                f"baseline.{field} has text, which needs item vectors, but a file of sequences has no texts (baseline.protocol "
                f"{self.protocol}). Leave text out, or use the run's own splits."
            )
        check_sequential("baseline", self.components or (), self.sequential)
        if self.protocol != "dataset" and self.sequential is not None:
            raise ConfigError(
                f"baseline.sequential is {self.sequential}, which is read as it was trained on a run's own splits, but "
                f"baseline.protocol is {self.protocol}. Leave it and the component sequential out, or use the run's own splits."
            )


BASELINE_OPTIONS = tuple(  # fields that are options of some models only
    field.name
    for field in dataclasses.fields(BaselineConfig)
    if field.default is None and field.name not in ("sequences", "weights", "valid_examples")
)


def check_sequential(section: str, components: Collection[str], name: str | None) -> None:
    """Refuse a component `sequential` without a baseline, a baseline that nothing reads, and one that cannot be a component.

    Args:
        section: `mixture` or `baseline`, for the message.
        components: that are named.
        name: of the baseline.

    Raises:
        ConfigError: one is named without the other, or the baseline has no weights that score every item after any history.
    """
    named = "sequential" in components
    if named and name is None:
        raise ConfigError(
            f"{section}.components names sequential, but {section}.sequential is null: which baseline is it? Name one that the "
            f"run has trained, such as --{section}.sequential sasrec, or leave sequential out of {section}.components."
        )
    if name is None:
        return
    if not named:
        raise ConfigError(
            f"{section}.sequential is {name}, but {section}.components does not name sequential, so nothing would read it. Add "
            f"sequential to {section}.components, or set {section}.sequential null."
        )
    if name in TRIVIAL_BASELINES:
        raise ConfigError(
            f"{section}.sequential is {name}, which only counts or compares texts. Name a neural baseline, such as sasrec; "
            f"counts and texts are components of their own ({section}.components)."
        )
    if name in CODED_BASELINES:
        raise ConfigError(
            f"{section}.sequential is {name}, which knows items by their codes: its weights alone do not score every item "
            "after any history. Name a baseline with a table of items, such as sasrec."
        )
