"""Section `sft`."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from minionerec.config.checks import bounded, bounded_list, check_fields, check_metric, check_shares
from minionerec.config.evaluation import RANKING_METRICS
from minionerec.config.tasks import DEFAULT_TASKS, RELEASED_TASKS, TASKS, TaskName
from minionerec.errors import ConfigError


@dataclass
class SftMixtureConfig:
    """Train through the mixture with `mixture.components`, to learn what these do not know.

    docs/training.md has the loss.
    """

    weights: Literal["none", "em", "fixed"] = "none"
    """The weights of model and components in the loss. `none` trains the model alone; `em` fits them by expectation
    maximisation at each validation, on its examples, as `mixture.per_bucket` and `mixture.pseudo_counts` say, and
    gives the model all the weight until the first validation; `fixed` gives the components `weight`."""
    weight: float | None = bounded(None, 0, 1, above=True, below=True)
    """The weight of all components together with `weights: fixed`; how they share it is fitted on valid (fraction)."""

    def __post_init__(self) -> None:
        check_fields("sft.mixture", self)
        if self.weights == "fixed" and self.weight is None:
            raise ConfigError("sft.mixture.weights is fixed, but sft.mixture.weight is not set; give a fraction, e.g. 0.5.")
        if self.weights != "fixed" and self.weight is not None:
            raise ConfigError(
                f"sft.mixture.weight is {self.weight}, but sft.mixture.weights is {self.weights}; it has an effect with fixed "
                "only."
            )


@dataclass
class SftConfig:
    """Stage `sft`: supervised fine-tuning on (prompt, completion) pairs, loss on the completion only."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = (
        "micro_batch",
        "micro_tokens",
        "row_tokens",
        "pack_workers",
        "gradient_checkpointing",
        "report_to",
    )
    """Fields that decide how a result is computed, not what it is. Results agree up to rounding, so `Config.key_fields` leaves
    these fields out."""

    tasks: list[TaskName] | Literal["released"] = field(default_factory=lambda: list(DEFAULT_TASKS))
    """Training tasks, mixed in one shuffled stream; docs/tasks.md shows each. `released` means the tasks of the released code's
    five classes, in its words."""
    task_shares: dict[TaskName, float] = field(default_factory=dict)
    """Share of a task's examples that is trained, drawn once for the whole run. A task without a share is trained whole
    (fraction above 0, at most 1)."""
    max_examples: int | None = bounded(None, 1, 10**9)
    """For a quick look: at most this many examples are trained, drawn from all tasks together, and at most this many of the
    valid split are validated, evenly spaced; null takes all (examples; paper: all)."""
    answer_in_prompt: bool = False
    """Write the answer at the end of every prompt that shows one item, as the released code does. Its only use is to measure
    that mistake."""
    history_stride: int = bounded(1, 1, 100_000)
    """Training histories start at multiples of this position in the user's sequence. Up to this many examples then share the
    beginning of their prompts and are computed together; up to stride - 1 of the oldest items are left out. 1 keeps every
    history whole (items; at most `data.max_history`)."""
    batch_size: int = bounded(128, 1, 10**7)
    """Prefix trees per optimiser step over all devices. A tree holds up to `history_stride` examples, with stride 1 exactly one
    (trees; paper: 1024)."""
    micro_batch: int = bounded(128, 1, 10**7)
    """Prefix trees computed at once on one device. Gradient accumulation computes the rest of a step's share (trees;
    paper: 16)."""
    train: Literal["full", "lora", "sid_rows"] = "full"
    """What is trained: everything, low-rank adapters and the rows of the SID tokens, or those rows alone (the released code's
    freeze_LLM). The saved model is always whole; an adapter is saved next to it (paper: full)."""
    lora_rank: int = bounded(16, 1, 8192)
    """Rank of the adapters' matrices (dimensions)."""
    lora_alpha: int = bounded(32, 1, 65_536)
    """The adapters' output is scaled by alpha / rank."""
    lora_dropout: float = bounded(0.0, 0, 1, below=True)
    """Dropout of the adapters' input (fraction)."""
    lora_targets: list[str] | None = None
    """Names of the linear layers that get adapters, such as q_proj; null means all but the head."""
    normalise_over: Literal["vocabulary", "catalog"] = "vocabulary"
    """Over which tokens the probabilities of a SID's token sum to 1 in the loss: all tokens, or those with which some SID of
    the catalog continues (the children in its trie). Text completions keep the vocabulary (paper: vocabulary)."""
    smoothing: float = bounded(0.0, 0, 1, below=True)
    """Share of a SID token's label that is spread evenly over the legal tokens in its place, including the label; 0 for none
    (fraction; paper: none)."""
    level_weights: list[float] | None = bounded_list(None, 0, 10**6)
    """Weights of a SID's levels in the loss, first level first, relative to one another; null weighs all alike."""
    frequency_power: float = bounded(0.0, 0, 4)
    """Examples of history tasks weigh n ** -power, where n is how often their item is a target: 0 weighs all alike, 0.5 lifts
    rare items, 1 gives every item the same total weight."""
    mixture: SftMixtureConfig = field(default_factory=SftMixtureConfig)
    micro_tokens: int | None = bounded(None, 1, 10**9)
    """Chooses the micro-batch: the largest that divides a device's share of the batch, is at most `micro_batch`, and keeps this
    budget even if all its trees are as long as the longest. null takes `micro_batch` itself (tokens)."""
    row_tokens: int | Literal["auto"] = bounded(256, 1, 10**7)
    """Length of the rows into which prefix trees are packed; one tree may exceed it. `auto`, on a GPU only, takes the length
    with the fewest planned operations among those that fit its memory (tokens)."""
    pack_workers: int | None = bounded(None, 0, 64)
    """Processes that pack the coming batches while one is computed; 0 packs between the steps. null takes 2 on a GPU and 0 on a
    CPU. The batches are the same (processes)."""
    epochs: float = bounded(3.0, 0.001, 10_000)
    """Passes over the training examples (epochs; paper: 10 with early stopping)."""
    learning_rate: float = bounded(1e-3, 1e-12, 1)
    """Peak learning rate of AdamW (paper: 3e-4 for pretrained models)."""
    weight_decay: float = bounded(0.01, 0, 10)
    """AdamW weight decay."""
    dropout: float = bounded(0.0, 0, 1, below=True)
    """Share of values that are dropped in training: in the embeddings, in the outputs of attention and feed-forward layers,
    and in the last states; 0 for none (fraction; paper: none). Small models that see the same histories many times need
    some."""
    warmup: float = bounded(0.05, 0, 1, below=True)
    """Share of the steps with rising learning rate, before the schedule (fraction)."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls to 0 after the warm-up (paper: cosine)."""
    max_grad_norm: float = bounded(1.0, 0, 10**6)
    """Gradient clipping; 0 for none (L2 norm)."""
    evaluations: int = bounded(10, 1, 10_000)
    """Validation passes over the whole run, evenly spaced; each also saves a checkpoint (count)."""
    best_metric: str = "loss"
    """Which checkpoint becomes `sft/model`: the one with the lowest `loss` on the valid split, or the one with the highest HR,
    NDCG or MRR at 1, 3, 5, 10, 20 or 50, e.g. NDCG@10, decoded as `eval` decodes. A small model's ranking improves long after
    its loss has stopped improving (paper: loss)."""
    valid_examples: int | None = bounded(None, 1, 10**9)
    """Examples of the valid split that each validation of `best_metric` decodes, evenly spaced; null takes all (examples)."""
    patience: int = bounded(3, 1, 10_000)
    """Stop after this many validation passes without a better `best_metric` (passes; paper: 3)."""
    bf16: bool = False
    """Compute in bfloat16 with float32 weights; must agree with the launcher's mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
    """Trackers that receive the curves as well; each needs its package. TensorBoard's files go to `tensorboard/sft` in the
    run's folder unless TENSORBOARD_LOGGING_DIR names another place."""

    def __post_init__(self) -> None:
        check_fields("sft", self)
        for option in dataclasses.fields(self):
            if option.name.startswith("lora_") and self.train != "lora" and getattr(self, option.name) != option.default:
                raise ConfigError(f"sft.{option.name} is set, but sft.train is {self.train}; it has an effect with lora only.")
        if self.level_weights is not None and not any(self.level_weights):
            raise ConfigError("sft.level_weights are all 0; there would be nothing to learn. null weighs levels alike.")
        check_metric("sft.best_metric", self.best_metric, ("loss", *RANKING_METRICS))
        if self.best_metric == "loss" and self.valid_examples is not None:
            raise ConfigError("sft.valid_examples is set, but sft.best_metric is loss, which is of the whole valid split.")
        check_shares("sft", self.task_shares, self.task_names)
        if not self.tasks:
            raise ConfigError("sft.tasks is empty; name at least one task.")
        self._check_effects()
        if self.mixture.weights != "none":
            self._check_mixture()

    def _check_effects(self) -> None:
        """Refuse what would have no effect on the tasks, rather than ignore it."""
        of_sids = {
            "level_weights": self.level_weights is not None,
            "smoothing": self.smoothing > 0,
            "normalise_over": self.normalise_over == "catalog",
        }
        if not self.writes_sids:
            for name in (name for name, is_set in of_sids.items() if is_set):
                raise ConfigError(
                    f"sft.{name} is {getattr(self, name)}, but no task of sft.tasks has a SID as its answer, and text is not "
                    "affected; leave it as it is by default."
                )
        if self.frequency_power and not any(TASKS[task].reads_history for task in self.task_names):
            raise ConfigError(
                f"sft.frequency_power is {self.frequency_power}, but no task of sft.tasks reads a history. Tasks about an item "
                "see every item once; leave it at 0."
            )

    def _check_mixture(self) -> None:
        """Refuse what a mixture is not defined for."""
        chosen = f"sft.mixture.weights is {self.mixture.weights}, but"
        for task in self.task_names:
            if not (TASKS[task].reads_history and TASKS[task].answers_with_sid):
                raise ConfigError(
                    f"{chosen} sft.tasks names {task}: the components know which item follows a history and nothing else. "
                    "Train tasks from a history to a SID only, e.g. sft.tasks [history_sid_to_sid]."
                )
        if self.normalise_over != "catalog":
            raise ConfigError(
                f"{chosen} sft.normalise_over is {self.normalise_over}: only over the catalog the model's probabilities of all "
                "items add up to 1, as the components' do. Set sft.normalise_over catalog."
            )
        if self.level_weights is not None:
            raise ConfigError(
                f"{chosen} sft.level_weights is {self.level_weights}: a mixture weighs whole items, not their tokens. Leave it "
                "out."
            )

    @property
    def writes_sids(self) -> bool:
        """Whether a task's answer is a SID; if not, the model learns to write texts alone."""
        return any(TASKS[task].answers_with_sid for task in self.task_names)

    @property
    def validated_examples(self) -> int | None:
        """How many examples of the valid split choose the best model at most; None for all."""
        return min((count for count in (self.valid_examples, self.max_examples) if count is not None), default=None)

    @property
    def task_names(self) -> list[TaskName]:
        """The tasks one by one."""
        return list(RELEASED_TASKS) if self.tasks == "released" else list(self.tasks)
