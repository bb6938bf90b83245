"""The one configuration: an experiment is one YAML with a section per stage, read into these dataclasses.

Every field has a docstring with its unit and, where the paper states one, the paper's value; `minionerec run --help` shows
them. Values are checked when the object is made, so a mistake costs seconds, not a training run.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from minionerec.errors import ConfigError

TaskName = Literal["history_sid_to_sid", "title_to_sid", "sid_to_title"]
RewardName = Literal["rule", "ranking", "ranking_only", "prefix", "semantic", "collaborative", "popularity"]
CUTOFFS = (1, 3, 5, 10, 20, 50)
# fmt: off
BaselineName = Literal[
    "popularity", "repeat", "item-knn", "markov", "gru4rec", "caser", "sasrec", "bert4rec", "lightsans", "fearec",
    "fearec-published", "hstu", "trm4rec", "wearec", "pswrec-v5", "pswrec-v12", "pswrec-v13", "pswrec-v13-without-rotation",
]
# fmt: on


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

    source: Literal["ml-100k", "ml-1m", "amazon-2018", "amazon-2023", "csv", "recbole", "sequences", "letter", "reference"] = (
        "ml-100k"
    )
    """Layout of the raw files. `ml-100k`, `ml-1m`, `amazon-2018`, `amazon-2023` and `reference` are downloaded where `path` is
    not given; the others are read from `path`. data/README.md shows each layout."""
    path: str | None = None
    """Folder of the raw files; for `sequences` a text file. A relative path counts from where the command is run."""
    category: str | None = None
    """Which data set, where a source has several: an Amazon category such as `Industrial_and_Scientific`, or the beginning of
    the file names of `reference`, `letter` and `amazon` folders; needed only where a folder holds more than one."""
    max_history: int = 20
    """Most recent items kept in a history (items; paper: 10)."""
    filters: Literal["named", "reference"] = "named"
    """`named` applies the options below as they are described. `reference` repeats the script of the reference: its title
    rules, windows in this machine's time zone, repeated rows kept, `user_k` also for items."""
    title_rules: bool | None = None
    """The reference's rules for titles: items without title, with `<span id` in it, of one character or of more than 20 words
    go, with their interactions. null: for Amazon yes, otherwise no."""
    start: str | None = None
    """Interactions before this are left out: a month or day, UTC, e.g. 2016-10 (paper's Industrial: 1996-10)."""
    end: str | None = None
    """Interactions after the first instant of this month or day are left out (UTC; paper: 2018-11)."""
    widen_below_items: int = 0
    """While fewer items are left, the window begins a year earlier, not before 1996; 0 for never (items; reference: 3000)."""
    deduplicate: bool | None = None
    """Of rows with the same user, item and timestamp only the first stays; the others are counted. null: yes, except under
    `filters: reference`."""
    user_k: int = 3
    """Users with fewer interactions go (interactions; at least 3 for leave-last-two-out; paper: 5)."""
    item_k: int | None = None
    """Items with fewer interactions go, and users and items are looked at again until all have enough; 0 keeps every listed
    item in the catalogue. null: `user_k` for Amazon and under `filters: reference`, otherwise 0 (interactions; paper: 5)."""
    split: Literal["leave-last-two-out", "chronological", "date"] = "leave-last-two-out"
    """`leave-last-two-out`: each user's last interaction is test, the one before valid. `chronological`: all examples in order
    of time, cut at `parts`. `date`: cut at `valid_from` and `test_from` (paper: chronological)."""
    parts: list[int] = field(default_factory=lambda: [8, 1, 1])
    """Shares of train, valid and test for `chronological` (paper: 8, 1, 1)."""
    valid_from: str | None = None
    """First day of the valid split for `date` (a month or day, UTC)."""
    test_from: str | None = None
    """First day of the test split for `date` (a month or day, UTC)."""
    missing_text: Literal["error", "drop"] = "error"
    """An item without title, or an interaction with an item that has no row among the items: stop with an error, or drop it
    (the item with its interactions) and count. Where title rules apply they are dropped and counted; lists of ids and the
    reference's files have an item's id or their own title throughout, so that nothing is missing."""
    on_error: Literal["stop", "skip"] = "stop"
    """A row that cannot be read: stop and name it, or skip it; skipped rows are counted, and listed in `skipped.txt`."""

    def __post_init__(self) -> None:
        _positive("data", max_history=self.max_history, user_k=self.user_k)
        _between("data", 0, math.inf, widen_below_items=self.widen_below_items, item_k=self.item_k or 0)
        if self.split == "leave-last-two-out" and self.user_k < 3:
            raise ConfigError(f"data.user_k is {self.user_k}; leave-last-two-out needs at least 3 interactions per user.")
        if self.path is None and self.source in ("csv", "recbole", "sequences", "letter"):
            raise ConfigError(f"data.source {self.source!r} needs data.path, the folder that holds your files.")
        if self.path is None and self.category is None and self.source in ("amazon-2018", "amazon-2023", "reference"):
            raise ConfigError(
                f"data.source {self.source!r} needs data.category, e.g. Office_Products, or data.path, a folder of files."
            )
        if self.on_error == "skip" and self.source in ("sequences", "letter"):
            raise ConfigError(
                f"data.on_error skip cannot be had with data.source {self.source!r}: a list has no rows to leave out."
            )
        self._check_window()
        if self.filters == "reference":
            self._check_reference()
        if self.source == "reference":
            self.refuse_filters("the splits of data.source 'reference' are given by its files")

    def _check_window(self) -> None:
        for name in ("start", "end", "valid_from", "test_from"):
            text = getattr(self, name)
            if text is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?", text):
                raise ConfigError(f"data.{name} is {text!r}; expected a month like 2016-10 or a day like 2016-10-31.")
        if self.start and self.end and self.start > self.end:
            raise ConfigError(f"data.start {self.start} is after data.end {self.end}.")
        if self.widen_below_items and self.start is None:
            raise ConfigError("data.widen_below_items moves the beginning of the window: set data.start, or leave it out.")
        if len(self.parts) != 3 or min(self.parts) < 0 or not self.parts[0]:
            raise ConfigError(f"data.parts is {self.parts}; expected three shares, e.g. [8, 1, 1], the first above 0.")
        if self.split == "date" and not (self.valid_from and self.test_from and self.valid_from < self.test_from):
            raise ConfigError(
                f"data.split is date: data.valid_from ({self.valid_from}) and data.test_from ({self.test_from}) must be set, "
                "the first before the second."
            )
        if self.split != "date" and (self.valid_from or self.test_from):
            raise ConfigError(f"data.valid_from and data.test_from belong to data.split date; it is {self.split}.")
        if self.split != "chronological" and self.parts != [8, 1, 1]:
            raise ConfigError(f"data.parts belongs to data.split chronological; it is {self.split}.")

    def _check_reference(self) -> None:
        if self.item_k not in (None, self.user_k):
            raise ConfigError(
                f"data.item_k is {self.item_k}, but under data.filters reference items need data.user_k ({self.user_k}) "
                "interactions too: the reference's own item_k has no effect. Leave data.item_k out."
            )
        if self.title_rules is False or self.deduplicate:
            name, value = ("title_rules", False) if self.title_rules is False else ("deduplicate", True)
            raise ConfigError(f"data.{name} is {value}, which data.filters reference excludes. Leave it out.")

    def refuse_filters(self, reason: str) -> None:
        """For raw files that are split already.

        Raises:
            ConfigError: a field is set that could have no effect.
        """
        default = {entry.name: getattr(DataConfig, entry.name, None) for entry in dataclasses.fields(DataConfig)}
        default["parts"] = [8, 1, 1]
        for name in ("filters", "title_rules", "start", "end", "widen_below_items", "deduplicate", "user_k", "item_k", "split"):
            if getattr(self, name) != default[name]:
                raise ConfigError(f"data.{name} is {getattr(self, name)}, but {reason}: it would have no effect. Leave it out.")

    @property
    def is_amazon(self) -> bool:
        """Whether the raw files are an Amazon dump."""
        return self.source.startswith("amazon-")

    @property
    def applies_title_rules(self) -> bool:
        """`title_rules`, or what stands for it."""
        return self.filters == "reference" or (self.is_amazon if self.title_rules is None else self.title_rules)

    @property
    def drops_duplicates(self) -> bool:
        """`deduplicate`, or what stands for it."""
        return self.filters == "named" if self.deduplicate is None else self.deduplicate

    @property
    def item_threshold(self) -> int:
        """`item_k`, or what stands for it."""
        if self.item_k is not None:
            return self.item_k
        return self.user_k if self.is_amazon or self.filters == "reference" else 0

    @property
    def split_dates(self) -> dict[str, str]:
        """The first days of valid and test, for `date`."""
        return {"valid_from": self.valid_from or "", "test_from": self.test_from or ""}


SidMethod = Literal[
    "rq-kmeans-joint", "rq-kmeans", "rq-kmeans-sinkhorn", "rq-kmeans-constrained", "rq-vae", "rq-kmeans-plus", "pq", "opq"
]


@dataclass
class RqVaeConfig:
    """Training of the two neural quantizers, `rq-vae` and `rq-kmeans-plus`."""

    hidden: list[int] = field(default_factory=lambda: [512, 256, 128])
    """Widths of the encoder's hidden layers; the decoder mirrors them (dimensions; reference: 2048 halved down to 64)."""
    latent: int = 32
    """Length of the quantised vector of `rq-vae`; `rq-kmeans-plus` quantises in the text vectors' own space (dimensions;
    reference: 32)."""
    learning_rate: float = 1e-3
    """AdamW, constant (reference: 1e-3 for RQ-VAE, 1e-4 for RQ-KMeans+)."""
    commitment: float = 0.25
    """Weight of the encoder's pull to its codes (reference: 0.25)."""
    batch_size: int = 1024
    """Vectors per step (vectors; reference: 20480)."""
    max_epochs: int = 400
    """Passes over the vectors at most (epochs; reference: 10,000, always all)."""
    patience: int = 10
    """Stop after this many epochs without a reconstruction error lower by 0.1 % (epochs; reference: never)."""
    ema: float = 0.0
    """Decay of codebooks that follow their vectors' moving average instead of a gradient, e.g. 0.99; 0 for the gradient
    (reference: gradient)."""
    revive: bool = True
    """After each epoch, put a code that no vector chose onto the residual of a random vector (reference: no)."""

    def __post_init__(self) -> None:
        _positive("sid.rqvae", latent=self.latent, learning_rate=self.learning_rate, batch_size=self.batch_size)
        _positive("sid.rqvae", max_epochs=self.max_epochs, patience=self.patience)
        _between("sid.rqvae", 0, 1, ema=self.ema)
        _between("sid.rqvae", 0, math.inf, commitment=self.commitment)
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"sid.rqvae.hidden is {self.hidden}; every width must be at least 1.")


@dataclass
class SidConfig:
    """Stage `sid`: item text to semantic IDs."""

    shipped: bool = False
    """Take the semantic IDs that the raw files bring (`data.source` reference or letter) instead of making some; the other
    fields of this section then play no part."""
    encoder: str = "minilm"
    """Text encoder: `minilm` (all-MiniLM-L6-v2 from an installed package), `tfidf` (TF-IDF and SVD, nothing to download),
    or the name or path of any sentence-transformers model (paper: Qwen3-Embedding-4B)."""
    vectors: str | None = None
    """A `.npy` file of your own (items, dimensions) float32 vectors in catalogue order, used instead of the encoder; it is
    memory-mapped, so it may be larger than the memory."""
    max_text_tokens: int = 256
    """Item text beyond this length is cut by the encoder (tokens; paper: 2048)."""
    tfidf_dimensions: int = 128
    """Vector length of the `tfidf` encoder; lowered to what the catalogue's rank allows (dimensions)."""
    collaborative: float = 0.35
    """How far items are moved to the mean of the items bought right before or after them in the training split, before level 1
    is clustered (fraction from 0, text only, to below 1; not for `pq` and `opq`, which have no first level of that kind). Items
    nobody bought keep their text's place."""
    method: SidMethod = "rq-kmeans-joint"
    """Quantizer. `rq-kmeans-joint`: size-balanced residual k-means whose levels are then refined together; `rq-kmeans`: plain
    residual k-means; `rq-kmeans-sinkhorn`, `rq-kmeans-constrained`: with balanced clusters, by Sinkhorn or by exact size
    limits (needs the extra `balanced`); `rq-vae`, `rq-kmeans-plus`: neural, see `rqvae`; `pq`, `opq`: (optimised) product
    quantisation (paper: RQ-VAE)."""
    levels: int = 3
    """Codes per SID (levels; paper: 3)."""
    codebook_size: int = 256
    """Centroids per level (paper: 256); see `coarse_first`."""
    coarse_first: bool = True
    """Give level 1 an eighth of `codebook_size`, at least 8 codes, and share the rest out over the other levels: 32 + 368 + 368
    in place of 3 x 256. The number of SID tokens stays the same; items that belong together share their first code more
    often (paper: no, though its RQ-VAE uses only 48 of its 256 first codes)."""
    codebook_sizes: list[int] | None = None
    """Centroids of each level one by one, e.g. [64, 256, 512]; null takes `levels`, `codebook_size` and `coarse_first`."""
    iterations: int = 50
    """Most k-means iterations per level (iterations)."""
    refinements: int = 6
    """Rounds of `rq-kmeans-joint`'s refinement (rounds; 0 for none)."""
    beam: int = 8
    """Partial SIDs kept per item when `rq-kmeans-joint` encodes (candidates)."""
    max_training_vectors: int = 65536
    """Codebooks of a larger catalogue are learnt from this many vectors drawn at random, by faiss instead of scikit-learn; all
    items are then encoded in shards (vectors)."""
    collisions: Literal["nearest-free", "sinkhorn", "suffix", "keep"] = "nearest-free"
    """Items with equal codes: `nearest-free` moves each to the free code under the nearest possible prefix that costs least,
    so that every item has its own SID; `sinkhorn` reassigns their last codes as the reference does, which may leave some;
    `suffix` tells them apart by a further code that the others do not have; `keep` lets them share a SID."""
    rqvae: RqVaeConfig = field(default_factory=RqVaeConfig)

    def __post_init__(self) -> None:
        _positive("sid", max_text_tokens=self.max_text_tokens, tfidf_dimensions=self.tfidf_dimensions, beam=self.beam)
        _positive("sid", levels=self.levels, iterations=self.iterations, max_training_vectors=self.max_training_vectors)
        _between("sid", 0, 1, collaborative=self.collaborative)
        _between("sid", 0, math.inf, refinements=self.refinements)
        most = 26 - (self.collisions == "suffix")
        if len(self.sizes) > most:
            name = "codebook_sizes" if self.codebook_sizes else "levels"
            raise ConfigError(
                f"sid.{name} is {getattr(self, name)}; levels, that of a suffix too, are named a to z, so {most} at most."
            )
        if self.codebook_sizes and self.levels not in (3, len(self.codebook_sizes)):
            raise ConfigError(
                f"sid.codebook_sizes has {len(self.codebook_sizes)} levels, but sid.levels is {self.levels}; leave one out."
            )
        if self.codebook_sizes == []:
            raise ConfigError("sid.codebook_sizes is an empty list; give one size per level, or null.")
        if min(self.sizes) < 2:
            name = "codebook_sizes" if self.codebook_sizes else "codebook_size"
            raise ConfigError(f"sid.{name} is {getattr(self, name)}; a level needs at least 2 codes.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Centroids of each level, as `codebook_sizes` or the three fields before it have them."""
        if self.codebook_sizes:
            return tuple(self.codebook_sizes)
        if not self.coarse_first or self.levels == 1:
            return (self.codebook_size,) * self.levels
        first = min(self.codebook_size, max(8, self.codebook_size // 8))
        rest, more = divmod(self.levels * self.codebook_size - first, self.levels - 1)
        return (first, *(rest + (level < more) for level in range(self.levels - 1)))


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
    sid_init: Literal["text", "mean", "random"] = "mean"
    """Where the rows of new SID tokens begin. `text`: at the mean token row of titles that carry the code, level by level on
    what the levels before leave over; `mean`: around the mean of all old rows; `random`: as the architecture draws weights."""
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
    train: Literal["full", "lora", "sid_rows"] = "full"
    """What is trained: everything, low-rank adapters and the rows of the SID tokens, or those rows alone (the reference's
    freeze_LLM). The saved model is whole in each case; an adapter lies beside it (paper: full)."""
    lora_rank: int = 16
    """Rank of the adapters' matrices (dimensions)."""
    lora_alpha: int = 32
    """The adapters' output is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout of the adapters' input (fraction)."""
    lora_targets: list[str] | None = None
    """Names of the linear layers that get adapters, such as q_proj; null for all but the head."""
    normalise: Literal["vocabulary", "catalogue"] = "vocabulary"
    """What the probabilities of a SID's token add up over in the loss: all tokens, or those with which the catalogue's SIDs can
    go on (the children in its trie). Text completions keep the vocabulary (paper: vocabulary)."""
    smoothing: float = 0.0
    """Share of a SID token's label that is spread evenly over the legal tokens in its place, itself among them; 0 for none
    (fraction; paper: none)."""
    level_weights: list[float] | None = None
    """What the levels of a SID count in the loss, from the first level on, relative to one another; null for all alike."""
    frequency_power: float = 0.0
    """Examples of history tasks count n ** -power, n being how often their item is a target: 0 for all alike, 0.5 lifts rare
    items, 1 makes every item count the same."""
    micro_tokens: int | None = None
    """Chooses the micro-batch: the largest that divides a device's share of the batch, is at most `micro_batch` and keeps this
    budget even if all its trees are as long as the longest; null takes `micro_batch` itself (tokens)."""
    row_tokens: int = 256
    """Length of the rows into which prefix trees are packed; one tree may exceed it (tokens)."""
    epochs: float = 3.0
    """Passes over the training examples (epochs; paper: 10 with early stopping)."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW (paper: 3e-4 for pretrained models)."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    dropout: float = 0.0
    """Share of values that are dropped in training: of the embeddings, of what attention and feed-forward add, and of the last
    states; 0 for none (fraction; paper: none). Small models that see the same histories many times need some."""
    warmup: float = 0.05
    """Share of the steps with rising learning rate, before the schedule (fraction)."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls to 0 after the warm-up (paper: cosine)."""
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
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
    """Where the curves are sent as well; each needs its package. TensorBoard's files go to `tensorboard/sft` in the run's
    folder unless TENSORBOARD_LOGGING_DIR names another place."""

    def __post_init__(self) -> None:
        _positive("sft", micro_tokens=self.micro_tokens)
        _positive("sft", batch_size=self.batch_size, row_tokens=self.row_tokens, epochs=self.epochs)
        _positive("sft", micro_batch=self.micro_batch, learning_rate=self.learning_rate)
        _positive("sft", history_stride=self.history_stride, evaluations=self.evaluations, patience=self.patience)
        _between("sft", 0, math.inf, weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm)
        _between("sft", 0, 1, warmup=self.warmup, smoothing=self.smoothing, dropout=self.dropout)
        _between("sft", 0, 1, lora_dropout=self.lora_dropout)
        _positive("sft", lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)
        for made in dataclasses.fields(self):
            if made.name.startswith("lora_") and self.train != "lora" and getattr(self, made.name) != made.default:
                raise ConfigError(f"sft.{made.name} is set, but sft.train is {self.train}; it has an effect with lora only.")
        _between("sft", 0, math.inf, frequency_power=self.frequency_power)
        if self.level_weights is not None:
            if not any(self.level_weights):
                raise ConfigError("sft.level_weights are all 0; there would be nothing to learn. null weighs levels alike.")
            for number, weight in enumerate(self.level_weights):
                _between("sft", 0, math.inf, **{f"level_weights[{number}]": weight})
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
    """Rollouts per prompt, the group of GRPO (SIDs; paper: 16)."""
    rollouts: Literal["beams", "stochastic", "sampling", "mixture"] = "beams"
    """Where a group comes from: `beams` are the most likely SIDs; `stochastic` draws distinct SIDs from the policy; `sampling`
    draws them independently, so that a group may hold one twice; `mixture` takes half of the group from the beams and draws
    the rest. Whichever it is, every SID is a valid one (paper: beams)."""
    add_target: bool = False
    """Put the target in place of a group's last SID where it is not in the group (paper: false)."""
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
    rewards: dict[RewardName, float] = field(default_factory=lambda: {"ranking": 1.0})
    """Weight of each reward in the sum; 0 only logs it. `rule` is 1 for the target's SID; `ranking_only` punishes the misses of
    a group that holds a hit, the higher ranked the more; `ranking` is their sum; `prefix` is the share of levels that are right
    from the first on; `semantic` the cosine between completion's and target's text; `collaborative` a sequential baseline's
    standardised score; `popularity` from 0 for unknown items to -1 for the most popular (paper: ranking 1)."""
    collaborative_model: BaselineName = "sasrec"
    """The neural baseline of this run that scores for `collaborative`; `minionerec baseline` trains it."""
    logp_space: Literal["vocabulary", "catalogue"] = "vocabulary"
    """What the probabilities of a token add up over, in the policy, the reference, the KL, the entropies and the rollouts: all
    tokens, or those with which the catalogue's SIDs can go on. Best as `sft.normalise` was (paper: vocabulary)."""
    objective: Literal["grpo", "exact", "listwise", "sdpo"] = "grpo"
    """`grpo` raises the log-probability of what is better than its group; `exact` raises the expected reward over the whole
    catalogue, without rollouts (small catalogues); `listwise` is a softmax cross-entropy of the target over its group; `sdpo`
    prefers the target to the rest of its group relative to the SFT model (S-DPO). The last two need `add_target`."""
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo"] = "grpo"
    """How objective `grpo` scales and averages; all but `dr_grpo` divide by the group's standard deviation of the reward. See
    docs/rl.md (paper: grpo)."""
    advantages: Literal["group", "sibling"] = "group"
    """What a reward is compared with: `group` with the whole group; `sibling`, token by token, with the members of the group
    that have the same tokens so far (paper: group)."""
    dynamic_sampling: Literal["none", "filter"] = "none"
    """`filter` leaves groups whose rewards are all equal out of the loss, KL and averages included (paper: none)."""
    sync_reference: int | None = None
    """Move the reference model of the KL towards the policy after every so many steps; null keeps the SFT model (steps; paper:
    512)."""
    sync_mix: float = 0.6
    """Share of the policy in a reference model that is moved (fraction; paper: 0.6)."""
    sdpo_beta: float = 1.0
    """Objective `sdpo`: how strongly the log-ratio of policy to SFT model counts; it takes the place of `beta`."""
    sft_weight: float = 0.0
    """Weight of the SFT loss of the target that is added, a mean over its tokens; 0 for none. It keeps the recommendations
    further down the list (paper: 0)."""
    checkpoints: int = 5
    """Checkpoints over the whole run, for resuming; each validation adds one (count)."""
    evaluations: int = 5
    """Validations over the whole run, evenly spaced, beside one of the SFT model before the first step: a beam search on the
    valid split, as `eval` decodes. The best model becomes `rl/model`, the SFT model where no step beats it. 0 for none: the
    last model is kept (count)."""
    valid_examples: int | None = 512
    """Examples of the valid split that each validation decodes, evenly spread over it; null takes all (examples)."""
    best_metric: str = "NDCG@10"
    """Which metric on the valid examples is best when highest: HR, NDCG or MRR at 1, 3, 5, 10, 20 or 50."""
    patience: int = 3
    """Stop after this many validations in a row without a better `best_metric` (validations)."""
    max_kl: float | None = 100.0
    """Stop with an error when the mean KL of a step's tokens to the SFT model exceeds this; it is measured only where `beta` is
    above 0. null for never (nats)."""
    report_to: list[str] = field(default_factory=list)
    """Trackers that get every figure beside `log.jsonl`, e.g. [tensorboard] or [wandb]; their packages must be installed."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the launcher's mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        _positive("rl", max_examples=self.max_examples, prompts_per_step=self.prompts_per_step, epochs=self.epochs)
        _positive("rl", micro_batch_prompts=self.micro_batch_prompts, learning_rate=self.learning_rate)
        _positive("rl", checkpoints=self.checkpoints, valid_examples=self.valid_examples, patience=self.patience)
        _positive("rl", max_kl=self.max_kl)
        _between("rl", 0, math.inf, evaluations=self.evaluations)
        if self.best_metric not in (known := [f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in CUTOFFS]):
            raise ConfigError(f"rl.best_metric is {self.best_metric!r}; it must be one of {', '.join(known)}.")
        _between("rl", 0, math.inf, beta=self.beta, max_grad_norm=self.max_grad_norm)
        _between("rl", 0, 1, warmup=self.warmup)
        for name, weight in self.rewards.items():
            if name not in get_args(RewardName):
                raise ConfigError(f"rl.rewards names {name!r}; it must be one of {', '.join(get_args(RewardName))}.")
            _between("rl", -math.inf, math.inf, **{f"rewards.{name}": weight})
        if not any(self.rewards.values()):
            raise ConfigError(f"rl.rewards is {self.rewards}; at least one reward needs a weight other than 0.")
        if self.num_generations < 2:
            raise ConfigError(f"rl.num_generations is {self.num_generations}; a group needs at least 2 to compare.")
        if not self.tasks:
            raise ConfigError("rl.tasks is empty; name at least one task.")
        wrong = [task for task in self.tasks if not task.endswith("to_sid")]
        if wrong:
            raise ConfigError(f"rl.tasks holds {wrong[0]}, whose completion is not a SID: beams cannot answer it.")
        _positive("rl", sync_reference=self.sync_reference, sdpo_beta=self.sdpo_beta, sync_mix=self.sync_mix)
        _between("rl", 0, math.inf, sft_weight=self.sft_weight)
        if self.sync_mix > 1:
            raise ConfigError(f"rl.sync_mix is {self.sync_mix}; it is a share, at most 1.")
        self._check_objective()

    def _check_objective(self) -> None:
        """Refuse options that contradict each other, rather than ignore one."""
        group = ("listwise", "sdpo")
        ranked = [name for name in self.rewards if name.startswith("ranking")]
        problems = {
            f"rl.objective {self.objective} needs its target in every group; set rl.add_target: true.": (
                self.objective in group and not self.add_target
            ),
            f"rl.objective {self.objective} compares distinct SIDs; rl.rollouts sampling may draw one twice.": (
                self.objective in group and self.rollouts == "sampling"
            ),
            "rl.objective exact draws no rollouts; leave rl.rollouts at beams and rl.add_target at false.": (
                self.objective == "exact" and (self.rollouts != "beams" or self.add_target)
            ),
            f"rl.rewards {', '.join(ranked)} depends on the ranks within a group, which rl.objective exact does not have; "
            "choose others, e.g. rl.rewards: {rule: 1.0}.": self.objective == "exact" and bool(ranked),
            "rl.objective exact is the expectation over the catalogue; set rl.logp_space: catalogue.": (
                self.objective == "exact" and self.logp_space != "catalogue"
            ),
            f"rl.loss, rl.advantages and rl.dynamic_sampling belong to rl.objective grpo, not to {self.objective}; leave "
            "them as they are by default.": (
                self.objective != "grpo" and (self.loss, self.advantages, self.dynamic_sampling) != ("grpo", "group", "none")
            ),
            "rl.advantages sibling gives every token its own advantage, rl.loss gspo one to the sequence; take another loss.": (
                self.advantages == "sibling" and self.loss == "gspo"
            ),
            "rl.sync_reference moves the reference model of the KL, but rl.beta is 0, so there is none.": (
                self.sync_reference is not None and self.beta == 0 and self.objective != "sdpo"
            ),
        }
        for message, applies in problems.items():
            if applies:
                raise ConfigError(message)


@dataclass
class EvalConfig:
    """Stage `eval`: rank the catalogue for every user of a split and measure."""

    split: Literal["valid", "test"] = "test"
    """Which targets are predicted."""
    num_beams: int = 50
    """Beams of the constrained search, and the length of each list; a metric with a larger cut-off sees the whole list and no
    more (SIDs; paper: 50)."""
    normalise: Literal["vocabulary", "catalogue"] = "vocabulary"
    """What a step's probabilities add up over in the scores: all tokens, as in the paper, or the legal next ones, as a model
    trained with `sft.normalise: catalogue` expects."""
    batch_size: int = 32
    """Prompts decoded at once (prompts)."""
    exclude_history: bool = False
    """Recommend nothing that stands in the example's history: the search runs in a view of the catalogue without it, and the
    lists of floors and baselines lose it (a baseline's list is then shorter than `baseline.top`). The exact scores of
    `oracle_examples` are of the whole catalogue all the same (paper: false)."""
    shard_size: int = 512
    """Examples decoded and stored at a time: an interrupted evaluation goes on after the last stored shard, and ranks take
    shards in turn, so the result does not depend on their number (examples)."""
    resamples: int = 2000
    """Bootstrap resamples of the 95 % intervals, users as units (count)."""
    oracle_examples: int = 128
    """Examples, evenly spread over the split, for which the whole catalogue is scored exactly: it shows what the beam search
    missed, where it lost the target, and how narrower beams would do; 0 for none (examples)."""

    def __post_init__(self) -> None:
        _positive("eval", num_beams=self.num_beams, batch_size=self.batch_size, resamples=self.resamples)
        _positive("eval", shard_size=self.shard_size)
        _between("eval", 0, math.inf, oracle_examples=self.oracle_examples)


@dataclass
class ReportConfig:
    """Stage `report`: one HTML page of the run."""

    examples: int = 10
    """Examples shown with their history and recommendations (examples)."""

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
        counts = ("hidden_size", "inner_size", "layers", "heads", "interests", "steps", "window", "neighbours")
        for name in (*counts, "horizontal_filters", "vertical_filters"):
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
        if self.sft.train != "full" and self.model.init == "from_scratch":
            raise ConfigError(
                f"sft.train is {self.sft.train}, but model.init is from_scratch: random weights would stay as they are. "
                "Set model.init from_pretrained and model.path, or sft.train full."
            )
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
