"""The one configuration: an experiment is one YAML with a section per stage, read into these dataclasses.

Every field has a docstring with its unit and, where the paper states one, the paper's value; `minionerec run --help` shows
them. Values are checked when the object is made, so a mistake costs seconds, not a training run.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minionerec.errors import ConfigError

TaskName = Literal["history_sid_to_sid", "title_to_sid", "sid_to_title"]
CUTOFFS = (1, 3, 5, 10, 20, 50)
BaselineName = Literal[
    "popularity",
    "repeat",
    "item-knn",
    "markov",
    "sasrec",
    "bert4rec",
    "lightsans",
    "fearec",
    "fearec-published",
    "trm4rec",
    "wearec",
    "pswrec-v5",
    "pswrec-v12",
    "pswrec-v13",
    "pswrec-v13-without-rotation",
    "gru4rec",
    "caser",
    "hstu",
]


def _positive(section: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:  # NaN, which YAML can write, fails every comparison
            raise ConfigError(f"{section}.{name} is {value}; it must be greater than 0.")


def _between(section: str, low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        if not low <= value < high:
            limit = f" and less than {high}" if high < math.inf else " and finite"
            raise ConfigError(f"{section}.{name} is {value}; it must be at least {low}{limit}.")


@dataclass
class DataConfig:
    """Stage `data`: raw files to a Dataset."""

    source: Literal["ml-100k", "csv", "recbole"] = "ml-100k"
    """Where interactions come from: `ml-100k` is downloaded; `csv` and `recbole` are read from `path`."""
    path: str | None = None
    """Folder of your own files: `interactions.csv` and `items.csv` for `csv`; one `*.inter` and one `*.item` file for
    `recbole`. For `ml-100k` optional: a folder with `ml-100k.zip` fetched by hand."""
    max_history: int = 20
    """Most recent items kept in a history (items; paper: 10)."""
    min_interactions: int = 3
    """Users with fewer interactions are dropped and counted (interactions; at least 3: train, valid, test)."""
    missing_text: Literal["error", "drop"] = "error"
    """An item without title: stop with an error, or drop the item with its interactions and count both."""

    def __post_init__(self) -> None:
        _positive("data", max_history=self.max_history)
        if self.min_interactions < 3:
            raise ConfigError(
                f"data.min_interactions is {self.min_interactions}; leave-last-two-out needs at least 3 per user."
            )
        if self.source != "ml-100k" and self.path is None:
            raise ConfigError(f"data.source {self.source!r} needs data.path, the folder that holds your files.")


@dataclass
class SidConfig:
    """Stage `sid`: item text to semantic IDs."""

    encoder: str = "minilm"
    """Text encoder: `minilm` (all-MiniLM-L6-v2 from an installed package), `tfidf` (TF-IDF and SVD, nothing to download),
    or the name or path of any sentence-transformers model (paper: Qwen3-Embedding-4B)."""
    max_text_tokens: int = 256
    """Item text beyond this length is cut by the encoder (tokens; paper: 2048)."""
    tfidf_dimensions: int = 128
    """Vector length of the `tfidf` encoder; lowered to what the catalogue's rank allows (dimensions)."""
    levels: int = 3
    """Codes per SID (levels; paper: 3)."""
    codebook_size: int = 256
    """Centroids per level (paper: 256)."""
    iterations: int = 50
    """Most k-means iterations per level (iterations)."""
    collisions: Literal["nearest-free", "keep"] = "nearest-free"
    """Items with equal codes: `nearest-free` moves each to the free code under the nearest possible prefix that costs least,
    so that every item has its own SID; `keep` lets them share one."""

    def __post_init__(self) -> None:
        _positive("sid", max_text_tokens=self.max_text_tokens, tfidf_dimensions=self.tfidf_dimensions)
        _positive("sid", levels=self.levels, iterations=self.iterations)
        if self.levels > 26:
            raise ConfigError(f"sid.levels is {self.levels}; levels are named a to z, so 26 at most.")
        if self.codebook_size < 2:
            raise ConfigError(f"sid.codebook_size is {self.codebook_size}; a level needs at least 2 codes.")


@dataclass
class ModelConfig:
    """The language model that both training stages share."""

    init: Literal["from_scratch", "from_pretrained"] = "from_scratch"
    """`from_scratch` makes a small Qwen2 and its tokenizer from the catalogue; `from_pretrained` loads `path`."""
    path: str | None = None
    """Folder or hub name of a causal LM for `from_pretrained` (paper: Qwen2.5-1.5B-Instruct)."""
    hidden_size: int = 192
    """Width of the from-scratch model (dimensions)."""
    intermediate_size: int = 512
    """Width of its feed-forward layers (dimensions)."""
    layers: int = 4
    """Its transformer blocks."""
    heads: int = 4
    """Its attention heads; they divide `hidden_size`."""
    vocabulary: int = 2000
    """Byte-level BPE entries learnt from the catalogue's text and the prompts, SID tokens not counted (tokens)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of a pretrained model's weights in SFT; from-scratch models, RL and evaluation keep float32 weights."""

    def __post_init__(self) -> None:
        _positive("model", hidden_size=self.hidden_size, intermediate_size=self.intermediate_size, layers=self.layers)
        _positive("model", heads=self.heads)
        if self.init == "from_pretrained" and not self.path:
            raise ConfigError("model.init is from_pretrained, but model.path is not set: name a folder or hub model.")
        if self.hidden_size % (2 * self.heads):
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} does not split into {self.heads} heads of even width (model.heads)."
            )
        if self.vocabulary < 300:
            raise ConfigError(f"model.vocabulary is {self.vocabulary}; byte-level BPE needs at least 300 entries.")


@dataclass
class SftConfig:
    """Stage `sft`: supervised fine-tuning on (prompt, completion) pairs, loss on the completion only."""

    tasks: list[TaskName] = field(default_factory=lambda: ["history_sid_to_sid", "title_to_sid", "sid_to_title"])
    """Training tasks, mixed in one shuffled stream."""
    history_stride: int = 1
    """A training history starts at a multiple of this position in the user's sequence, so that up to this many examples share
    their prompt's beginning and are computed together; up to stride - 1 of the oldest items are left out. 1 keeps every
    history whole (items; at most `data.max_history`)."""
    batch_size: int = 128
    """Prefix trees per optimiser step over all devices; a tree holds up to `history_stride` examples, so with stride 1 these
    are examples (trees; paper: 1024)."""
    micro_batch: int = 128
    """Prefix trees computed at once on one device; the rest of a step's share follows by gradient accumulation (trees;
    paper: 16)."""
    row_tokens: int = 256
    """Length of the rows into which prefix trees are packed; one tree may exceed it (tokens)."""
    epochs: float = 3.0
    """Passes over the training examples (epochs; paper: 10 with early stopping)."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW (paper: 3e-4 for pretrained models)."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    warmup: float = 0.05
    """Share of the steps with rising learning rate, before the cosine (fraction)."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none (L2 norm)."""
    evaluations: int = 10
    """Validation passes over the whole run, evenly spaced; each also saves a checkpoint (count)."""
    patience: int = 3
    """Stop after this many validation passes without a lower loss (passes; paper: 3)."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the launcher's mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        _positive("sft", batch_size=self.batch_size, row_tokens=self.row_tokens, epochs=self.epochs)
        _positive("sft", micro_batch=self.micro_batch, learning_rate=self.learning_rate)
        _positive("sft", history_stride=self.history_stride, evaluations=self.evaluations, patience=self.patience)
        _between("sft", 0, math.inf, weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm)
        _between("sft", 0, 1, warmup=self.warmup)
        if not self.tasks:
            raise ConfigError("sft.tasks is empty; name at least one task.")


@dataclass
class RlConfig:
    """Stage `rl`: GRPO with ranked beams and ranking rewards, from the SFT model."""

    tasks: list[TaskName] = field(default_factory=lambda: ["history_sid_to_sid"])
    """Tasks whose completion is a SID; each row carries its own target."""
    max_examples: int | None = 4096
    """Training prompts drawn at random from the tasks' examples; null takes all (examples; paper: all)."""
    num_generations: int = 16
    """Ranked beams per prompt, the group of GRPO (SIDs; paper: 16)."""
    prompts_per_step: int = 32
    """Prompts per optimiser step over all devices (prompts; paper: 64)."""
    micro_batch_prompts: int = 32
    """Prompts computed at once on one device (prompts)."""
    epochs: float = 1.0
    """Passes over the drawn prompts (epochs; paper: 2)."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW (paper: 1e-5 for a 1.5B model)."""
    warmup: float = 0.03
    """Share of the steps with rising learning rate, before the cosine (fraction; paper: 0.03)."""
    max_grad_norm: float = 0.3
    """Gradient clipping; 0 for none (L2 norm; paper: 0.3)."""
    beta: float = 1e-3
    """Weight of the KL divergence (k3) to the SFT model (paper: 1e-3)."""
    reward: Literal["rule", "ranking", "ranking_only"] = "ranking"
    """`rule` is 1 for the target's SID; `ranking_only` punishes the misses of a group that holds a hit, the higher ranked the
    more; `ranking` is their sum (paper: ranking)."""
    checkpoints: int = 5
    """Checkpoints over the whole run, for resuming (count)."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the launcher's mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        _positive("rl", max_examples=self.max_examples, prompts_per_step=self.prompts_per_step, epochs=self.epochs)
        _positive("rl", micro_batch_prompts=self.micro_batch_prompts, learning_rate=self.learning_rate)
        _positive("rl", checkpoints=self.checkpoints)
        _between("rl", 0, math.inf, beta=self.beta, max_grad_norm=self.max_grad_norm)
        _between("rl", 0, 1, warmup=self.warmup)
        if self.num_generations < 2:
            raise ConfigError(f"rl.num_generations is {self.num_generations}; a group needs at least 2 to compare.")
        if not self.tasks:
            raise ConfigError("rl.tasks is empty; name at least one task.")
        wrong = [task for task in self.tasks if not task.endswith("to_sid")]
        if wrong:
            raise ConfigError(f"rl.tasks holds {wrong[0]}, whose completion is not a SID: beams cannot answer it.")


@dataclass
class EvalConfig:
    """Stage `eval`: rank the catalogue for every user of a split and measure."""

    split: Literal["valid", "test"] = "test"
    """Which targets are predicted."""
    num_beams: int = 50
    """Beams of the constrained search, and the length of each list; a metric with a larger cut-off sees the whole list and no
    more (SIDs; paper: 50)."""
    batch_size: int = 32
    """Prompts decoded at once (prompts)."""
    resamples: int = 2000
    """Bootstrap resamples of the 95 % intervals, users as units (count)."""

    def __post_init__(self) -> None:
        _positive("eval", num_beams=self.num_beams, batch_size=self.batch_size, resamples=self.resamples)


@dataclass
class ReportConfig:
    """Stage `report`: one HTML page of the run."""

    examples: int = 10
    """Example users shown with their history and recommendations (users)."""

    def __post_init__(self) -> None:
        _between("report", 0, math.inf, examples=self.examples)


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
    """Length of the ranked lists that are stored (items)."""
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
    """Dropout of attention weights (fraction)."""
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
    window: int | None = None
    """`caser`: most recent items that the filters see (items)."""
    horizontal_filters: int | None = None
    """`caser`: filters per height."""
    vertical_filters: int | None = None
    """`caser`: filters over single places."""
    neighbours: int | None = None
    """`item-knn`: most similar items kept per item (items)."""
    shrinkage: float | None = None
    """`item-knn`: added to the denominator of the cosine, so that items seen together once count little (users)."""

    def __post_init__(self) -> None:
        _positive("baseline", max_history=self.max_history, batch_size=self.batch_size, learning_rate=self.learning_rate)
        _positive("baseline", epochs=self.epochs, patience=self.patience, top=self.top)
        for name in ("hidden_size", "inner_size", "layers", "heads", "interests", "steps"):
            _positive("baseline", **{name: getattr(self, name)})
        for name in ("window", "horizontal_filters", "vertical_filters", "neighbours"):
            _positive("baseline", **{name: getattr(self, name)})
        for name in ("dropout", "attention_dropout", "mask_ratio"):
            _between("baseline", 0, 1, **{name: getattr(self, name) or 0.0})
        for name in ("weight_decay", "phase_weight", "shrinkage"):
            _between("baseline", 0, math.inf, **{name: getattr(self, name) or 0.0})
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


@dataclass
class Config:
    """One experiment."""

    name: str = "experiment"
    """Name of the run; also the folder under `runs/` where `out` is not given."""
    out: str | None = None
    """Folder of the run; `runs/<name>` where null."""
    seed: int = 42
    """Seed of every random choice, from 0 to 2**32 - 1; the same seed on the same machine gives the same result."""
    threads: int = 2
    """CPU threads of the numerical libraries, per process; an OMP_NUM_THREADS in the environment wins (threads)."""
    data: DataConfig = field(default_factory=DataConfig)
    sid: SidConfig = field(default_factory=SidConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)

    def __post_init__(self) -> None:
        _positive("config", threads=self.threads)
        _between("config", 0, 2**32, seed=self.seed)  # numpy and scikit-learn take no other
        if self.sft.history_stride > self.data.max_history:
            raise ConfigError(
                f"sft.history_stride {self.sft.history_stride} is longer than data.max_history {self.data.max_history}: "
                "training histories would be empty."
            )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out) if self.out else Path("runs") / self.name

    def section(self, *names: str) -> dict[str, Any]:
        """The named sections as plain values, for manifests and keys."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in names}
