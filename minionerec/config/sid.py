"""Section `sid`."""

from dataclasses import dataclass, field
from typing import Literal

from minionerec.config.baseline import HelperName
from minionerec.config.checks import bounded, bounded_list, check_fields, path
from minionerec.errors import ConfigError

SidMethod = Literal[
    "rq-kmeans-joint",
    "rq-kmeans",
    "rq-kmeans-sinkhorn",
    "rq-kmeans-constrained",
    "rq-vae",
    "rq-kmeans-plus",
    "letter",
    "pq",
    "opq",
]

VECTOR_FIELDS = ("encoder", "vectors", "max_text_tokens", "tfidf_dimensions")  # of the section: what decides the item vectors


@dataclass
class RqVaeConfig:
    """Training of the neural quantizers, `rq-vae`, `letter` and `rq-kmeans-plus`."""

    hidden: list[int] = bounded_list([512, 256, 128], 1, 65_536)
    """Widths of the encoder's hidden layers; the decoder mirrors them (dimensions; released: 2048 halved down to 64)."""
    latent: int = bounded(32, 1, 8192)
    """Length of the quantised vector of `rq-vae` and `letter`; `rq-kmeans-plus` quantises in the text vectors' own space
    (dimensions; released: 32)."""
    learning_rate: float = bounded(1e-3, 1e-12, 1)
    """AdamW, constant (released: 1e-3 for RQ-VAE, 1e-4 for RQ-KMeans+)."""
    commitment: float = bounded(0.25, 0, 1000)
    """Weight of the encoder's pull to its codes (released: 0.25)."""
    batch_size: int = bounded(1024, 1, 10**7)
    """Vectors per step (vectors; released: 20480)."""
    max_epochs: int = bounded(400, 1, 100_000)
    """Passes over the vectors at most (epochs; released: 10,000, always all)."""
    patience: int = bounded(10, 1, 10**6)
    """Stop after this many epochs without a reconstruction error lower by 0.1 % (epochs; released: never)."""
    ema: float = bounded(0.0, 0, 1, below=True)
    """Decay of codebooks that follow their vectors' moving average instead of a gradient, e.g. 0.99; 0 for the gradient
    (released: gradient)."""
    revive: bool = True
    """After each epoch, put a code that no vector chose onto the residual of a random vector (released: no)."""

    def __post_init__(self) -> None:
        check_fields("sid.rqvae", self)


@dataclass
class LetterConfig:
    """What `letter` adds to the training of `rq-vae`. Weights count in variances of the text vectors."""

    alignment: float = bounded(0.01, 0, 1000)
    """Weight of the alignment with the item vectors of `sid.collaborative_model` (LETTER's script: 0.01)."""
    diversity: float = bounded(1e-4, 0, 1000)
    """Weight of the diversity of codes (LETTER's script: 1e-4)."""
    groups: int = bounded(10, 2, 10_000)
    """Groups of each level's codes, at least two codes each (groups; LETTER: 10)."""

    def __post_init__(self) -> None:
        check_fields("sid.letter", self)


@dataclass
class SidConfig:
    """Stage `sid`: item text to semantic IDs."""

    shipped: bool = False
    """Take the semantic IDs that the raw files bring (`data.source` released or letter) instead of making some; of
    this section's other fields only `collisions` then plays a part, and those of the text vectors where a stage needs them."""
    encoder: str = path("minilm")
    """Text encoder: `minilm` (all-MiniLM-L6-v2 from an installed package), `tfidf` (TF-IDF and SVD, nothing to download),
    or the name or path of any sentence-transformers model (paper: Qwen3-Embedding-4B)."""
    vectors: str | None = path()
    """A `.npy` file of your own (items, dimensions) float32 vectors in catalog order, used instead of the encoder; it is
    memory-mapped, so it may be larger than the memory."""
    max_text_tokens: int = bounded(256, 1, 10**6)
    """Item text beyond this length is cut by the encoder (tokens; paper: 2048)."""
    tfidf_dimensions: int = bounded(128, 1, 65_536)
    """Vector length of the `tfidf` encoder; lowered to what the catalog's rank allows (dimensions)."""
    collaborative: float = bounded(0.35, 0, 1, below=True)
    """How far items are moved to the mean of the items bought right before or after them in the training split, before level 1
    is clustered (fraction from 0, text only, to below 1; not for `pq` and `opq`, which have no first level of that kind, nor
    for `letter`, which has an alignment instead). Items nobody bought keep their text's place."""
    collaborative_model: HelperName | None = None
    """The neural baseline of this run that says which items belong together for `collaborative`: those nearest by its item
    vectors, in place of the items bought right before or after; null for these (`minionerec baseline` trains it, before this
    stage). `letter` needs one, for its alignment."""
    method: SidMethod = "rq-kmeans-joint"
    """Quantizer. `rq-kmeans-joint`: size-balanced residual k-means whose levels are then refined together; `rq-kmeans`: plain
    residual k-means; `rq-kmeans-sinkhorn`, `rq-kmeans-constrained`: with balanced clusters, by Sinkhorn or by exact size
    limits (needs the extra `balanced`); `rq-vae`, `rq-kmeans-plus`: neural, see `rqvae`; `letter`: `rq-vae` that also follows a
    baseline's item vectors, see `letter`; `pq`, `opq`: (optimised) product
    quantisation (paper: RQ-VAE)."""
    levels: int = bounded(3, 1, 26)
    """Codes per SID (levels; paper: 3)."""
    codebook_size: int = bounded(256, 2, 10**6)
    """Centroids per level (paper: 256); see `coarse_first`."""
    coarse_first: bool = True
    """Give level 1 an eighth of `codebook_size`, at least 8 codes, and share the rest out over the other levels: 32 + 368 + 368
    in place of 3 x 256. The number of SID tokens stays the same; items that belong together share their first code more
    often (paper: no, though its RQ-VAE uses only 48 of its 256 first codes)."""
    codebook_sizes: list[int] | None = bounded_list(None, 2, 10**6)
    """Centroids of each level one by one, e.g. [64, 256, 512]; null takes `levels`, `codebook_size` and `coarse_first`."""
    iterations: int = bounded(50, 1, 100_000)
    """Most k-means iterations per level (iterations)."""
    refinements: int = bounded(6, 0, 1000)
    """Rounds of `rq-kmeans-joint`'s refinement (rounds; 0 for none)."""
    beam: int = bounded(8, 1, 10_000)
    """Partial SIDs kept per item when `rq-kmeans-joint` encodes (candidates)."""
    max_training_vectors: int = bounded(65_536, 1, 10**9)
    """Codebooks of a larger catalog are learnt from this many vectors drawn at random, by faiss instead of scikit-learn; all
    items are then encoded in shards (vectors)."""
    collisions: Literal["nearest-free", "sinkhorn", "suffix", "item", "keep"] = "nearest-free"
    """Items with equal codes: `nearest-free` moves each to the free code under the nearest possible prefix that costs least,
    so that every item has its own SID (a shipped one moves to the free last code nearest in number); `sinkhorn` reassigns their
    last codes as the released code does, which may leave some (not shipped ones); `suffix` gives each of them a further code,
    which all other items lack; `item` gives every item a last code of its own, its number in the catalog, in the place of the
    quantised one; `keep` lets them share a SID (released, paper)."""
    rqvae: RqVaeConfig = field(default_factory=RqVaeConfig)
    letter: LetterConfig = field(default_factory=LetterConfig)

    def __post_init__(self) -> None:
        check_fields("sid", self)
        if self.collaborative_model is not None and not self.fusion and self.method != "letter":
            raise ConfigError(
                f"sid.collaborative_model is {self.collaborative_model}, but nothing is fused: sid.collaborative is "
                f"{self.collaborative}, sid.method {self.method}."
            )
        if self.shipped and self.collisions == "sinkhorn":
            raise ConfigError(
                "sid.collisions is sinkhorn, which needs distances to centroids, but sid.shipped takes SIDs that have none; "
                "expected nearest-free, suffix, item or keep."
            )
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
        if self.method == "letter" and not self.shipped:
            self._check_letter()

    def _check_letter(self) -> None:
        if self.collaborative_model is None:
            raise ConfigError(
                "sid.method is letter, which aligns SIDs with the item vectors of a baseline, but sid.collaborative_model is "
                "null. Name a neural baseline of the run, such as sasrec, trained before this stage."
            )
        if self.letter.diversity and self.rqvae.ema:
            raise ConfigError(
                f"sid.rqvae.ema is {self.rqvae.ema}: codebooks that follow averages have no gradient, and sid.letter.diversity "
                "would do nothing. Set one of the two to 0."
            )
        if self.letter.diversity and min(self.sizes) < 2 * self.letter.groups:
            raise ConfigError(
                f"sid.letter.groups is {self.letter.groups}, and each group needs two codes, but a level has only "
                f"{min(self.sizes)} (codebooks: {' + '.join(map(str, self.sizes))}). Lower the groups or enlarge the level."
            )

    @property
    def fusion(self) -> float:
        """`collaborative`; 0 where the method has no first level that it could decide, or is aligned instead."""
        return 0.0 if self.method in ("pq", "opq", "letter") else self.collaborative

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
