"""Sections `eval` and `report`."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from minionerec.config.baseline import HelperName, TitleHelperName
from minionerec.config.checks import Bounds, bounded, check_fields
from minionerec.errors import ConfigError

CUTOFFS = (1, 3, 5, 10, 20, 50)
FREQUENT = 2  # most frequent targets that a slice sets apart, unless another number is set
RESAMPLES = 2000  # of bootstrap intervals and permutation tests, unless another number is set
RANKING_METRICS = tuple(f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in CUTOFFS)
Dtype = Literal["float32", "bfloat16", "float16"]  # number formats of a model that is asked
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
MOST_BEAMS = 10_000  # each beam attends to all others of its prompt: at 32 prompts that is a mask of 3 GB already
RESAMPLES_BOUNDS = Bounds(40, 100_000)  # below 40 no resample lies in a tail of 2.5 %


@dataclass
class EvalConfig:
    """Stage `eval`: rank the catalog for every user of a split and measure."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "cuda_graphs",
        "assistant",
        "assistant_weight",
        "assistant_examples",
        "wordings",
        "grounding",
        "title_beams",
        "title_tokens",
        "title_assistant",
        "title_weight",
        "title_examples",
        "title_trie",
        "length_penalty",
    )
    """Fields that decide how a result is computed, not which one, up to rounding, and those that decide some lists alone, which
    have them in their keys all the same (`sft-d3`, `rl-d3`, `sft-titles` and those that begin so, several wordings);
    `key_fields` leaves them out."""

    split: Literal["valid", "test"] = "test"
    """Which targets are predicted."""
    num_beams: int = bounded(50, 1, MOST_BEAMS)
    """Beams of the constrained search, and the length of each list. No metric has a larger cut-off (SIDs;
    paper: 50)."""
    normalise_over: Literal["vocabulary", "catalog"] = "vocabulary"
    """What a step's probabilities add up over in the scores: all tokens, as in the paper, or the legal next ones, as a model
    trained with `sft.normalise_over: catalog` expects. It holds for the baselines that write SIDs (`tiger`, `lazy`, `liger`),
    too."""
    dtype: Dtype = "float32"
    """Number format of the model's weights and of what is computed with them, up to the logits; scores are float32. The short
    formats take half the memory and are fast on GPUs, and bfloat16 on CPUs with AMX. They round, so lists differ a little
    (docs/use.md has figures). Validations by a ranking metric round a copy of the model that is trained in the same way."""
    batch_size: int = bounded(32, 1, 100_000)
    """Prompts decoded at once (prompts)."""
    cuda_graphs: Literal["auto", "off"] = "auto"
    """Whether a search on a GPU, that of RL's beams included, is recorded as a CUDA graph, one for each size of batch, and
    replayed: same lists, far fewer launches. `auto` does it wherever model and search allow it; a CPU has none, nor has
    any baseline (docs/gpu.md)."""
    exclude_history: bool = False
    """Recommend no item of the example's history: a search runs in a view of the catalog without it, and it is removed from
    the lists of baselines that search nothing (these are then shorter than `baseline.top`). The exact scores of
    `oracle_examples` always cover the whole catalog (paper: false)."""
    shard_size: int = bounded(512, 1, 10**7)
    """Examples decoded and stored at a time. An interrupted evaluation resumes after the last stored shard; processes take
    shards in turn, so the result does not depend on their number (examples)."""
    resamples: int = bounded(RESAMPLES, RESAMPLES_BOUNDS.low, RESAMPLES_BOUNDS.high)
    """Bootstrap resamples of the 95 % intervals, users as units (count)."""
    oracle_examples: int = bounded(128, 0, 10**7)
    """Examples, evenly spaced over the split, for which a model that writes SIDs scores the whole catalog exactly. The scores
    show what the beam search missed, at which level it dropped the target, and how narrower beams would do; 0 for none
    (examples)."""
    assistant: HelperName | None = None
    """D3: a neural baseline of this run that helps the model at every step. The model's lists with it are evaluated as `sft-d3`
    and `rl-d3`, with `title_trie` as `sft-titles-d3`, beside those of the model alone; null for none (D3: sasrec)."""
    assistant_weight: float | None = bounded(None, 0, 1)
    """The model's weight a in D3's score of a step, a log p_model + (1 - a) log p_assistant: 1 is the model alone, 0 the
    assistant. Null takes the one that `minionerec d3` chose on the valid split (fraction)."""
    assistant_examples: int | None = bounded(512, 1, 10**9)
    """Examples of the valid split, evenly spaced, on which `minionerec d3` compares weights; null takes all (examples)."""

    wordings: Literal["first", "mean"] = "first"
    """With `prompts.wording: several`: `mean` asks a model with each of the wordings, too, and stores the mean of their metrics
    (`wordings.json`); the lists that all tables show, and written titles, are those of the first (LC-Rec: mean)."""

    grounding: Literal["none", "base", "trained"] = "none"
    """BIGRec: the SFT model writes the next item's title freely, and items are ranked by the distance of their titles to it
    (`sft-titles`). The embeddings are states of the model before its training (`base`; BIGRec) or after it (`trained`)."""
    title_beams: int = bounded(4, 1, 1000)
    """Beams with which a title is written, over all tokens (BIGRec: 4)."""
    title_tokens: int = bounded(64, 1, 100_000)
    """Most tokens of a title that is written freely. Its prompt leaves room for them, and with `title_trie` for as many
    (tokens; BIGRec: 128)."""
    title_assistant: TitleHelperName | None = None
    """BIGRec's weighing: what the distances of titles are divided by, `popularity` or the scores of a neural baseline of this
    run, scaled to 1..2 and raised to `title_weight`; null leaves the distances as they are."""
    title_weight: float | None = bounded(None, 0, 99)
    """The exponent of `title_assistant`: 0 is the distances alone. Null takes the one with the best NDCG@10 on the valid split,
    from 0, .01, ..., .99, 1, 2, ..., 99 as in BIGRec (power)."""
    title_examples: int | None = bounded(512, 1, 10**9)
    """Examples of the valid split, evenly spaced, for which titles are written to choose `title_weight`; null takes all
    (examples)."""
    title_trie: bool = False
    """BIGRec's second row and D3 on titles: the SFT model is searched over the titles of the catalog, token by token, with
    `num_beams` (`sft-titles-trie`; D3: 10 beams). A title takes dozens of tokens, so this is many times slower than SIDs."""
    length_penalty: float = bounded(0.0, 0, 10)
    """With `title_trie`: scores are divided by the title's tokens, the end included, to this power. 0 is the log-probability
    (D3), 1 its mean over the tokens, as transformers generates (BIGRec). SIDs of one length all lose alike, so theirs have
    none (power)."""

    def __post_init__(self) -> None:
        check_fields("eval", self)
        for name in ("title_beams", "title_tokens", "title_assistant"):
            used = self.grounding != "none" or (name == "title_tokens" and self.title_trie)
            if not used and getattr(self, name) != getattr(EvalConfig, name):
                raise ConfigError(f"eval.{name} is set, but it has an effect with eval.grounding only.")
        if self.length_penalty and not self.title_trie:
            raise ConfigError(
                f"eval.length_penalty is {self.length_penalty}, but it has an effect with eval.title_trie only: SIDs have one "
                "length, so it would rank them as they are. Leave it 0, or set eval.title_trie true."
            )
        for assistant, names in (
            ("assistant", ("assistant_weight", "assistant_examples")),
            ("title_assistant", ("title_weight", "title_examples")),
        ):
            for name in names:
                if getattr(self, assistant) is None and getattr(self, name) != getattr(EvalConfig, name):
                    raise ConfigError(f"eval.{name} is set, but it has an effect with eval.{assistant} only.")
            weight, examples = names
            if getattr(self, weight) is not None and getattr(self, examples) != getattr(EvalConfig, examples):
                raise ConfigError(
                    f"eval.{examples} is set, but nothing is chosen by them, as eval.{weight} is {getattr(self, weight)}. "
                    f"Leave it at {getattr(EvalConfig, examples)}, or set eval.{weight} null."
                )

    @property
    def by_graphs(self) -> bool:
        """Whether searches on a GPU are recorded."""
        return self.cuda_graphs == "auto"

    @property
    def chooses_title_weight(self) -> bool:
        """Whether `title_weight` is chosen on the valid split."""
        return self.title_assistant is not None and self.title_weight is None


@dataclass
class ReportConfig:
    """Stage `report`: one HTML page of the run."""

    examples: int = bounded(10, 0, 10_000)
    """Examples shown with their history and recommendations (examples)."""

    def __post_init__(self) -> None:
        check_fields("report", self)
