"""Section `lego`, and the table of the named recipes of content recommenders."""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

from minionerec.config.checks import bounded, bounded_list, check_fields, path
from minionerec.errors import ConfigError

ItemPart = Literal["id", "pooling", "cnn", "cnn-cat", "attention", "transformer", "fastformer", "plm", "flatten"]
UserPart = Literal["additive", "attention", "pooling", "transformer", "fastformer", "gru", "poly", "none"]
InteractionPart = Literal["dot", "max", "dcn", "dcnv2", "gdcn", "deepfm", "pnn", "din", "din-reference", "dnn"]
RecipeName = Literal[
    "naml",
    "nrms",
    "lstur",
    "fastformer",
    "plm-nr",
    "miner",
    "bst",
    "dcn",
    "dcnv2",
    "gdcn",
    "deepfm",
    "pnn",
    "din",
    "recformer",
]


class Parts(NamedTuple):
    """The three parts of a content recommender."""

    item: ItemPart
    user: UserPart
    interaction: InteractionPart

    def __str__(self) -> str:
        return f"{self.item}/{self.user}/{self.interaction}"


RECIPES: dict[RecipeName, Parts] = {
    "naml": Parts("cnn", "additive", "dot"),
    "nrms": Parts("attention", "attention", "dot"),
    "lstur": Parts("cnn-cat", "gru", "dot"),
    "fastformer": Parts("fastformer", "fastformer", "dot"),
    "plm-nr": Parts("plm", "additive", "dot"),
    "miner": Parts("plm", "poly", "max"),
    "bst": Parts("pooling", "transformer", "dot"),
    "dcn": Parts("pooling", "pooling", "dcn"),
    "dcnv2": Parts("pooling", "pooling", "dcnv2"),
    "gdcn": Parts("pooling", "pooling", "gdcn"),
    "deepfm": Parts("pooling", "pooling", "deepfm"),
    "pnn": Parts("pooling", "pooling", "pnn"),
    "din": Parts("id", "none", "din"),
    "recformer": Parts("flatten", "none", "dot"),
}
DIN = ("din", "din-reference")


def options_of(title: str) -> str:
    """The options of the command line that name the recommender of a title, see `LegoConfig.title`.

    >>> options_of("naml"), options_of("cnn-cat-gru-dot")
    ('--lego.recipe naml', '--lego.item cnn-cat --lego.user gru --lego.interaction dot')
    """
    for item, user, interaction in product(get_args(ItemPart), get_args(UserPart), get_args(InteractionPart)):
        if title == f"{item}-{user}-{interaction}":
            return f"--lego.item {item} --lego.user {user} --lego.interaction {interaction}"
    return f"--lego.recipe {title}"


_MHA = ("attention", "transformer", "fastformer", "flatten")  # parts with heads
_SUM = ("cnn", "cnn-cat", "plm", "additive", "poly", *_MHA)  # parts with additive attention
_ONLY_FOR: dict[str, Collection[str]] = {  # fields that only some parts read
    "hidden": _SUM,
    "layers": ("transformer", "fastformer", "flatten"),
    "heads": _MHA,
    "kernel": ("cnn", "cnn-cat"),
    "fields": tuple(part for part in get_args(ItemPart) if part != "id"),
    "vocabulary": tuple(part for part in get_args(ItemPart) if part not in ("id", "plm")),
    "max_words": tuple(part for part in get_args(ItemPart) if part not in ("id", "plm")),
    "flat_tokens": ("flatten",),
    "codes": ("poly",),
    "mlp": tuple(part for part in get_args(InteractionPart) if part not in ("dot", "max")),
    "cross_layers": ("dcn", "dcnv2", "gdcn"),
    "experts": ("dcnv2",),
    "rank": ("dcnv2",),
    "full_rank": ("dcnv2",),
}
_OF_ITEMS = ("fields", "vocabulary", "max_words")  # of these, what item encoders alone read
_MLP = [1000, 1000, 1000]
_LORA_DEFAULTS = ("lora_alpha", "lora_dropout")


@dataclass
class LegoPlmConfig:
    """The pretrained language model of the item encoder `plm`."""

    path: str = path("minilm")
    """A sentence encoder or causal LM: `minilm` (all-MiniLM-L6-v2 from an installed package), a folder, a GGUF file,
    `smollm2-135m` after `minionerec model get smollm2-135m`, or a hub name."""
    max_tokens: int = bounded(32, 1, 10**6)
    """Item text beyond this length is cut (tokens)."""
    tune_from: int | None = bounded(None, -512, 512)
    """Keep the states after this many layers, computed once for all items, and train the layers above. A negative number
    counts from the end, so -1 trains the last layer. null keeps the states after the last layer and trains none (layers)."""
    lora_rank: int = bounded(0, 0, 8192)
    """Train low-rank adapters of the layers above `tune_from` instead of their weights; 0 trains the weights (Legommenders:
    32)."""
    lora_alpha: int = bounded(128, 1, 10**6)
    """Scale of the adapters, divided by the rank."""
    lora_dropout: float = bounded(0.1, 0, 1, below=True)
    """Dropout of what the adapters read (fraction)."""
    pooling: Literal["additive", "mean", "last"] = "additive"
    """How the states of a text's words become one vector: a learnt weighted sum, their mean, or the last word's, which suits
    causal LMs."""

    def __post_init__(self) -> None:
        check_fields("lego.plm", self)
        if self.tune_from is None and self.lora_rank:
            raise ConfigError(
                f"lego.plm.lora_rank is {self.lora_rank}, but lego.plm.tune_from is null, so no layer is trained. Set "
                "lego.plm.tune_from, e.g. -1."
            )
        for name in _LORA_DEFAULTS:
            if not self.lora_rank and getattr(self, name) != getattr(LegoPlmConfig, name):
                raise ConfigError(f"lego.plm.{name} is set, but lego.plm.lora_rank is 0: there are no adapters. Leave it out.")


@dataclass
class LegoConfig:
    """Command `lego`: a content recommender of item encoder, user encoder and interaction."""

    recipe: RecipeName = "naml"
    """A named choice of the three parts; docs/legommenders.md lists them. `item`, `user` and `interaction` change one each."""
    item: ItemPart | None = None
    """Item encoder: `id` is a table; all others read the item's `fields`. `flatten` reads a whole history as one text. null:
    the recipe's."""
    user: UserPart | None = None
    """User encoder over the item vectors of the history; `none` goes with the interactions that read the history itself, and
    with `flatten`. null: the recipe's."""
    interaction: InteractionPart | None = None
    """What scores user and candidate. null: the recipe's."""
    fields: list[str] | None = None
    """Fields of the catalog that item encoders read, e.g. [title, categories]; null: all that train items have."""
    width: int = bounded(64, 1, 65_536)
    """Width of word, item and user vectors (dimensions; Legommenders: 256)."""
    hidden: int = bounded(256, 1, 65_536)
    """Width inside additive attention, and of `poly`'s codes (dimensions)."""
    dropout: float = bounded(0.1, 0, 1, below=True)
    """Dropout of words and of the layers (fraction)."""
    layers: int | None = bounded(None, 1, 512)
    """Layers of `transformer` and `flatten` (null: 3) and of `fastformer` (null: 1)."""
    heads: int | None = bounded(None, 1, 1024)
    """Attention heads (null: 8; `fastformer`: 16)."""
    kernel: int = bounded(3, 1, 1001)
    """`cnn`, `cnn-cat`: neighbouring words that a filter reads (words)."""
    flat_tokens: int = bounded(256, 2, 10**6)
    """`flatten`: most tokens of a history that are read, the newest (tokens)."""
    codes: int = bounded(32, 1, 10_000)
    """`poly`: vectors per user."""
    mlp: list[int] = bounded_list(_MLP, 1, 65_536)
    """Widths of the hidden layers of interactions that have some (dimensions)."""
    cross_layers: int = bounded(3, 1, 512)
    """`dcn`, `dcnv2`, `gdcn`: cross layers."""
    experts: int = bounded(4, 1, 1024)
    """`dcnv2`: low-rank experts per cross layer."""
    rank: int = bounded(32, 1, 65_536)
    """`dcnv2`: rank of each expert."""
    full_rank: bool = False
    """`dcnv2`: one full matrix per cross layer in place of the experts."""
    history: int = bounded(50, 1, 100_000)
    """Most recent items of a history that are read (items)."""
    plm: LegoPlmConfig = field(default_factory=LegoPlmConfig)
    task: Literal["lists", "pairs"] = "lists"
    """What it learns and is measured by: the examples of the run's splits, by ranking the whole catalog (`lists`), or labelled
    pairs of the stage `pairs`, in one table with the controls of `score` (`pairs`)."""
    scheme: Literal["auto", "matching", "ranking"] = "auto"
    """The loss. `matching`: what a user liked against drawn items, cross-entropy. `ranking`: each candidate alone, binary
    cross-entropy. `auto`: matching for `dot` and `max`, ranking for the others."""
    negatives: int | None = bounded(None, 1, 10**6)
    """Items drawn for each one that the user liked, none of which the train data say the user had: in `matching` on pairs first
    the user's own dislikes, otherwise uniformly. null: 4 (items; Legommenders: 4). `ranking` on pairs draws none."""
    vocabulary: int = bounded(8000, 300, 10**6)
    """Words and pieces of words, learnt from the texts of the train items (entries)."""
    max_words: int = bounded(32, 1, 100_000)
    """Texts of a field beyond this length are cut (tokens)."""
    batch_size: int = bounded(64, 1, 10**6)
    """Examples per optimiser step over all devices (examples)."""
    learning_rate: float = bounded(1e-3, 1e-12, 1)
    """Adam's learning rate in the first step; it falls to 0 linearly over `epochs`."""
    item_lr: float | None = bounded(None, 1e-12, 1)
    """Learning rate of the layers of the language model that train, if `plm.tune_from` is set; null: `learning_rate`."""
    epochs: int = bounded(50, 1, 10**6)
    """Passes over the train examples at most (epochs)."""
    patience: int = bounded(5, 1, 10**6)
    """Stop after this many epochs without a better GAUC (`pairs`) or NDCG@10 (`lists`) on valid; the best epoch is kept."""
    valid_examples: int | None = bounded(None, 1, 10**9)
    """`lists`: rows of valid, drawn by the seed, that choose the best epoch (rows; null: all)."""
    top: int = bounded(50, 1, 100_000)
    """`lists`: length of the stored ranked lists (items); longer if `eval.exclude_history` takes the history out of them."""

    def __post_init__(self) -> None:
        check_fields("lego", self)
        self._check_training()
        if self.mlp == []:
            raise ConfigError("lego.mlp is an empty list; name one width at least.")
        if self.fields == []:
            raise ConfigError("lego.fields is an empty list; name one field at least, or null for all that the catalog has.")
        _check_parts(self.parts)
        self._refuse_unread()
        for part in {self.parts.item, self.parts.user} & set(_MHA):
            if self.width % self.heads_of(part):
                raise ConfigError(
                    f"lego.width {self.width} does not split into the {self.heads_of(part)} heads of {part}; change lego.width "
                    "or lego.heads."
                )

    @classmethod
    def of_manifest(cls, kept: Mapping[str, Any]) -> "LegoConfig":
        """The section that a manifest keeps, without what is no field of it, such as how the epoch of lists was chosen."""
        names = {option.name for option in dataclasses.fields(cls)}
        fields = {name: value for name, value in kept.items() if name in names}
        return cls(**{**fields, "plm": LegoPlmConfig(**kept["plm"])})

    @property
    def parts(self) -> Parts:
        """The recipe's parts, with those in their place that are named one by one."""
        item, user, interaction = RECIPES[self.recipe]
        return Parts(self.item or item, self.user or user, self.interaction or interaction)

    @property
    def title(self) -> str:
        """What artefacts are called: the recipe, or the three parts if one of them is another than the recipe's."""
        return self.recipe if self.parts == RECIPES[self.recipe] else "-".join(self.parts)

    @property
    def loss(self) -> Literal["matching", "ranking"]:
        """The scheme, chosen."""
        if self.scheme != "auto":
            return self.scheme
        return "matching" if self.parts.interaction in ("dot", "max") else "ranking"

    @property
    def drawn(self) -> int:
        """Items drawn for each liked one; 0 if none are."""
        return 0 if self.task == "pairs" and self.loss == "ranking" else self.negatives or 4

    def _check_training(self) -> None:
        """Refuse fields of the training that nothing would read."""
        if self.negatives is not None and not self.drawn:
            raise ConfigError(
                f"lego.negatives is {self.negatives}, but ranking on pairs learns from their labels and draws nothing. Leave "
                "it out, or set lego.scheme matching."
            )
        if self.task == "pairs":
            for name in ("valid_examples", "top"):
                if (value := getattr(self, name)) != getattr(LegoConfig, name):
                    raise ConfigError(f"lego.{name} is {value}, but lego.task is pairs: there are no lists. Leave it out.")
        if self.item_lr is not None and (self.parts.item != "plm" or self.plm.tune_from is None):
            raise ConfigError(
                f"lego.item_lr is {self.item_lr:g}, but no layer of a language model trains (lego.item plm with "
                "lego.plm.tune_from). Leave it out."
            )

    def heads_of(self, part: str) -> int:
        """Attention heads of a part."""
        return self.heads or (16 if part == "fastformer" else 8)

    def layers_of(self, part: str) -> int:
        """Layers of a part."""
        return self.layers or (1 if part == "fastformer" else 3)

    def _refuse_unread(self) -> None:
        """Refuse fields that none of the three parts reads."""
        for option in dataclasses.fields(self):
            parts = {self.parts.item} if option.name in _OF_ITEMS else {*self.parts}  # `pooling` is an item and a user part
            if option.name in _ONLY_FOR and not parts & {*_ONLY_FOR[option.name]}:
                value = getattr(self, option.name)
                default = option.default if option.default is not dataclasses.MISSING else _MLP
                if value != default:
                    raise ConfigError(
                        f"lego.{option.name} is {value}, but none of the parts {self.parts} reads it; "
                        f"{', '.join(_ONLY_FOR[option.name])} do. Leave it out."
                    )
        if self.parts.item != "plm" and self.plm != LegoPlmConfig():
            raise ConfigError(
                f"lego.plm is set, but the item encoder is {self.parts.item}. Set lego.item plm, or leave it out."
            )


def _check_parts(parts: Parts) -> None:
    """Refuse cells of the grid that cannot be computed.

    Raises:
        ConfigError: the message says why, and what would go.
    """
    cell = f"lego cannot combine {parts}: "
    if parts.item == "flatten":
        if parts.user != "none":
            raise ConfigError(
                f"{cell}flatten reads a history as one text and gives the user's vector itself. Set lego.user none."
            )
        if parts.interaction in (*DIN, "max"):
            raise ConfigError(
                f"{cell}{parts.interaction} needs several vectors of a user, but flatten gives one. Set lego.interaction dot."
            )
        return
    if parts.interaction in DIN and parts.user != "none":
        raise ConfigError(
            f"{cell}{parts.interaction} weighs the items of the history for each candidate, so it takes their vectors and no "
            "user vector. Set lego.user none."
        )
    if parts.user == "none" and parts.interaction not in DIN:
        raise ConfigError(
            f"{cell}{parts.interaction} needs a user vector, but the user encoder none makes none. Name another lego.user, or "
            "set lego.interaction din."
        )
    if parts.user == "poly" and parts.interaction != "max":
        raise ConfigError(
            f"{cell}poly gives several vectors of a user, but {parts.interaction} takes one. Set lego.interaction max."
        )
    if parts.interaction == "max" and parts.user != "poly":
        raise ConfigError(
            f"{cell}max takes the best of several user vectors, but {parts.user} gives one. Set lego.user poly, or "
            "lego.interaction dot."
        )
