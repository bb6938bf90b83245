"""Section `rl`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, get_args

from minionerec.config.baseline import HelperName
from minionerec.config.checks import bounded, bounded_list, check_fields, check_metric, check_shares, cut
from minionerec.config.evaluation import RANKING_METRICS
from minionerec.config.tasks import RECOMMENDING, TASKS, TaskName
from minionerec.errors import ConfigError

RewardName = Literal[
    "rule",
    "ranking",
    "ranking_only",
    "prefix",
    "semantic",
    "collaborative",
    "popularity",
]
_PRETRAINED_BRAKE = 0.1  # nats; what `kl_brake` auto means for a pretrained model: docs/rl.md says why
_OF_THE_TARGET = ("listwise", "sdpo")  # objectives that compare the target with the rest of its group
# What an unbiased gradient from a group drawn without replacement takes, see `importance_advantages`.
_UNBIASED = {
    "objective": "grpo",
    "rollouts": "stochastic",
    "add_target": False,
    "normalise_over": "catalog",
    "loss": "dr_grpo",
    "advantages": "group",
    "dynamic_sampling": "none",
}


@dataclass
class RlConfig:
    """Stage `rl`: GRPO with ranked beams and ranking rewards, from the SFT model."""

    NOT_IN_KEY: ClassVar[tuple[str, ...]] = ("micro_batch_prompts", "gradient_checkpointing", "report_to")
    """Fields that decide how a result is computed, not which one; `Config.key_fields` leaves them out. Results agree up to
    rounding."""

    tasks: list[TaskName] = field(default_factory=lambda: [RECOMMENDING])
    """Tasks whose completion is a SID; each row carries its own target."""
    task_shares: dict[TaskName, float] = field(default_factory=dict)
    """Share of a task's examples that are rolled out, drawn with the seed; a task without a share takes all (fraction;
    released: 10,000 examples of history_title_to_sid)."""
    targets: Literal["row", "last_row", "released"] = "row"
    """Which target a rollout is rewarded for. `row`: its own. `last_row`: that of the last training row with the same prompt.
    `released`: like `last_row`, but a validation row with that prompt overrides it, as in the released code. The last two are
    mistakes, kept to measure what they cost."""
    holdout: Literal["none", "users", "last"] = "none"
    """Training rows that SFT leaves out, so that RL asks about unseen ones. `users`: all rows of a share of the users. `last`:
    the last row of a share of the users, of those who have several. It is part of SFT's settings, and both stages must agree
    (paper: none)."""
    holdout_share: float = bounded(0.2, 0, 1, above=True)
    """Share of the users that `holdout` leaves out, drawn by a hash of seed and user (fraction)."""
    prompts: Literal["train", "holdout", "valid"] = "train"
    """Which rows RL asks about. `train`: those that SFT was trained on. `holdout`: those that it left out. `valid`: the valid
    split, which then can choose nothing more (paper: train)."""
    max_examples: int | None = bounded(4096, 1, 10**9)
    """Training prompts, drawn at random from the tasks' examples; null takes all (examples; paper: all)."""
    num_generations: int = bounded(16, 2, 10_000)
    """Rollouts per prompt, the group of GRPO (SIDs; paper: 16)."""
    rollouts: Literal["beams", "stochastic", "sampling", "mixture", "uniform"] = "beams"
    """Where a group comes from. `beams`: the most likely SIDs. `stochastic`: distinct SIDs drawn from the policy. `sampling`:
    independent draws, so a SID may come twice. `mixture`: half of the group from the beams, the rest drawn. `uniform`: the
    target and SIDs drawn with equal chances, none of the history; for the objectives `listwise` and `sdpo`. All SIDs are valid
    ones (paper: beams; S-DPO: uniform)."""
    add_target: bool = False
    """If a group lacks its target, put it in place of the group's last SID (paper: false)."""
    prompts_per_step: int = bounded(32, 1, 10**6)
    """Prompts per optimiser step, over all devices (prompts; paper: 64)."""
    micro_batch_prompts: int = bounded(32, 1, 10**6)
    """Prompts computed at once on one device (prompts)."""
    epochs: float = bounded(1.0, 0.001, 10_000)
    """Passes over the training prompts (epochs; paper: 2)."""
    learning_rate: float = bounded(1e-4, 1e-12, 1)
    """Peak learning rate of AdamW (paper: 1e-5 for a 1.5B model)."""
    warmup: float = bounded(0.03, 0, 1, below=True)
    """Share of the steps with rising learning rate, before its cosine decay (fraction; paper: 0.03)."""
    kl_brake: float | Literal["auto"] | None = bounded("auto", 0, 10**6, above=True)
    """Multiply a step's learning rate by `kl_brake` / KL where the step's mean KL per token to the SFT model exceeds it; null
    for never. It holds back a rate that is too high for the model; needs `beta` above 0. `auto`: 0.1 for a pretrained model
    (`model.init` of SFT), null for one from scratch (nats; paper: none)."""
    max_grad_norm: float = bounded(0.3, 0, 10**6)
    """Gradient clipping; 0 for none (L2 norm; paper: 0.3)."""
    beta: float = bounded(1e-3, 0, 1000)
    """Weight of the KL divergence (k3) to the SFT model (paper: 1e-3)."""
    rewards: dict[RewardName, float] = bounded_list({"ranking": 1.0}, -1000, 1000)
    """Weight of each reward in the sum; 0 only logs it. `rule`: 1 for the target's SID. `ranking_only`: punishes the misses of
    a group with a hit, the higher ranked the more. `ranking`: their sum. `prefix`: the share of levels that are right, up to
    the first wrong one. `semantic`: the cosine between the texts of completion and target. `collaborative`: a sequential
    baseline's standardised score. `popularity`: from 0 for an item nobody bought to -1 for the most popular (paper: ranking
    1)."""
    collaborative_model: HelperName = "sasrec"
    """The neural baseline of this run that scores for `collaborative`; `minionerec baseline` trains it."""
    normalise_over: Literal["vocabulary", "catalog"] = "vocabulary"
    """What the probabilities of a token add up over: all tokens (`vocabulary`), or those that continue a SID of the `catalog`.
    Holds for the policy, the reference model, the KL, the entropies and the rollouts. Best as `sft.normalise_over` was (paper:
    vocabulary)."""
    objective: Literal["grpo", "exact", "listwise", "sdpo"] = "grpo"
    """`grpo`: raise the log-probability of SIDs that are better than their group. `exact`: raise the expected reward over the
    whole catalog, without rollouts (small catalogs). `listwise`: softmax cross-entropy of the target over its group. `sdpo`:
    prefer the target to the rest of its group, relative to the SFT model (S-DPO). The last two need `add_target`."""
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo"] = "grpo"
    """How objective `grpo` scales rewards and averages tokens; all but `dr_grpo` divide by the standard deviation of a group's
    rewards. See docs/rl.md (paper: grpo)."""
    advantages: Literal["group", "sibling"] = "group"
    """What a reward is compared with. `group`: the whole group. `sibling`: token by token, the members of the group that have
    the same tokens so far (paper: group)."""
    importance_weights: bool = False
    """Weight the SIDs that stochastic beams drew, so that the gradient is that of the expected reward over the catalog, without
    bias. Needs `rl.loss: dr_grpo` and `rl.normalise_over: catalog` (paper: false)."""
    dynamic_sampling: Literal["none", "filter", "refill"] = "none"
    """`filter`: leave groups whose rewards are all equal out of the loss, of the KL and of the averages. `refill`: first put
    other prompts in their place (paper: none)."""
    refill_rounds: int = bounded(3, 1, 1000)
    """How often `refill` tries as many further prompts as a step has; groups that have no signal even then are left out
    (rounds)."""
    sync_reference: int | None = bounded(None, 1, 10**9)
    """Move the reference model of the KL towards the policy every so many steps; null keeps the SFT model (steps; paper:
    512)."""
    sync_mix: float = bounded(0.6, 0, 1, above=True)
    """Share of the policy in a reference model that moves (fraction; paper: 0.6)."""
    sdpo_beta: float = bounded(1.0, 0, 1000, above=True)
    """Objective `sdpo`: how strongly the log-ratio of policy to SFT model counts; it replaces `beta`."""
    sft_weight: float = bounded(0.0, 0, 1000)
    """Weight of the target's SFT loss, a mean over tokens, in the objective; 0 for none. It keeps
    recommendations further down the list (paper: 0)."""
    entropy_bonus: float = bounded(0.0, 0, 1000)
    """Weight of the policy's mean entropy per token, which is subtracted from the loss; 0 for none. It keeps the policy from
    becoming certain of few SIDs (paper: 0)."""
    updates_per_rollout: int = bounded(1, 1, 1000)
    """Optimiser steps from the same rollouts. From the second on each token counts with the ratio of its probability now to the
    one when it was rolled out, clipped by `clip` (steps; GRPO's mu; paper: 1)."""
    clip: float = bounded(0.2, 0, 1, above=True)
    """How far the ratio of new to old probability may move from 1 before a token counts no more; that of the whole sequence
    with `loss: gspo`. It acts with `updates_per_rollout` above 1 only."""
    checkpoints: int = bounded(5, 1, 10_000)
    """Checkpoints over the whole run, for resuming; each validation adds one (count)."""
    evaluations: int = bounded(5, 0, 10_000)
    """Validations over the whole run, evenly spaced, and one more of the SFT model before the first step: a beam search on the
    valid split, as `eval` decodes. The best model becomes `rl/model`; if no step beats the SFT model, that is the best. 0 for
    none: the last model is kept (count)."""
    valid_examples: int | None = bounded(512, 1, 10**9)
    """Examples of the valid split that each validation decodes, evenly spread over it; null takes all (examples)."""
    best_metric: str = "NDCG@10"
    """The metric on the valid examples that decides: HR, NDCG or MRR at 1, 3, 5, 10, 20 or 50."""
    patience: int = bounded(3, 1, 10_000)
    """Stop after this many validations in a row without a better `best_metric` (validations)."""
    max_kl: float | None = bounded(100.0, 0, 10**6, above=True)
    """Stop with an error when a micro-batch's mean KL to the SFT model exceeds this; null for never. It is a mean per token
    over all devices, measured only if `beta` is above 0 (nats)."""
    report_to: list[str] = field(default_factory=list)
    """Trackers that get every figure in addition to `log.jsonl`, e.g. [tensorboard]; their packages must be installed."""
    bf16: bool = False
    """Compute in bfloat16, rollouts too, with float32 weights; must agree with the launcher's mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        check_fields("rl", self)
        check_metric("rl.best_metric", self.best_metric, RANKING_METRICS)
        for name in self.rewards:
            if name not in get_args(RewardName):
                raise ConfigError(f"rl.rewards names {cut(repr(name))}; it must be one of {', '.join(get_args(RewardName))}.")
        if not any(self.rewards.values()):
            raise ConfigError(f"rl.rewards is {self.rewards}; at least one reward needs a weight other than 0.")
        if not self.tasks:
            raise ConfigError("rl.tasks is empty; name at least one task.")
        wrong = [task for task in self.tasks if not TASKS[task].answers_with_sid]
        if wrong:
            raise ConfigError(f"rl.tasks holds {wrong[0]}, whose completion is not a SID: beams cannot answer it.")
        check_shares("rl", self.task_shares, self.tasks)
        for problem in (*self._conflicts(), *self._prompt_conflicts(), *self._without_effect()):
            raise ConfigError(problem)

    @property
    def decodes(self) -> bool:
        """Whether the policy is asked for rollouts."""
        return self.objective != "exact" and self.rollouts != "uniform"

    def kl_limit(self, pretrained: bool) -> float | None:
        """The KL above which steps are braked (nats); None for no brake.

        Args:
            pretrained: SFT began with a pretrained model.
        """
        if self.kl_brake != "auto":
            return self.kl_brake
        # S-DPO's own loss drives the policy away from the reference model; without beta nobody measures how far it is.
        watched = self.beta > 0 and self.objective != "sdpo"
        return _PRETRAINED_BRAKE if pretrained and watched else None

    def _conflicts(self) -> Iterator[str]:
        """Options that contradict each other: refused rather than one of them ignored."""
        ranked = ", ".join(name for name in self.rewards if name.startswith("ranking"))
        if self.objective in _OF_THE_TARGET:
            if not self.add_target:
                yield f"rl.objective {self.objective} needs its target in every group; set rl.add_target: true."
            if self.rollouts == "sampling":
                yield f"rl.objective {self.objective} compares distinct SIDs; rl.rollouts sampling may draw one twice."
        if self.rollouts == "uniform" and self.objective not in ("exact", *_OF_THE_TARGET):
            yield (
                "rl.rollouts uniform draws SIDs that the policy would hardly write, next to a target that it was given: "
                f"rl.objective {self.objective} has nothing to learn from their rewards. Choose listwise or sdpo."
            )
        if self.rollouts == "uniform" and ranked:
            yield (
                f"rl.rewards {ranked} depends on the ranks within a group, which rl.rollouts uniform does not have; choose "
                "others, e.g. rl.rewards: {rule: 1.0}."
            )
        if self.objective == "exact":
            if self.rollouts != "beams" or self.add_target:
                yield "rl.objective exact draws no rollouts; leave rl.rollouts at beams and rl.add_target at false."
            if ranked:
                yield (
                    f"rl.rewards {ranked} depends on the ranks within a group, which rl.objective exact does not have; "
                    "choose others, e.g. rl.rewards: {rule: 1.0}."
                )
            if self.normalise_over != "catalog":
                yield "rl.objective exact is the expectation over the catalog; set rl.normalise_over: catalog."
        if self.objective != "grpo" and (self.loss, self.advantages, self.dynamic_sampling) != ("grpo", "group", "none"):
            yield (
                f"rl.loss, rl.advantages and rl.dynamic_sampling belong to rl.objective grpo, not to {self.objective}; leave "
                "them as they are by default."
            )
        if self.advantages == "sibling" and self.loss == "gspo":
            yield "rl.advantages sibling gives every token its own advantage, rl.loss gspo one to the sequence; choose another."
        if self.importance_weights:
            if any(getattr(self, name) != value for name, value in _UNBIASED.items()):
                needed = ", ".join(f"rl.{name}: {str(value).lower()}" for name, value in _UNBIASED.items())
                yield (
                    "rl.importance_weights belongs to distinct SIDs drawn from the policy over the catalog and to unscaled "
                    f"rewards; set {needed}."
                )
            if ranked:
                yield (
                    f"rl.rewards {ranked} depends on the ranks within a group, so there is no expectation that "
                    "rl.importance_weights could estimate; choose others, e.g. rl.rewards: {rule: 1.0}."
                )
        if self.updates_per_rollout > 1 and (self.objective != "grpo" or self.importance_weights):
            other = "rl.importance_weights" if self.importance_weights else f"rl.objective {self.objective}"
            yield (
                f"rl.updates_per_rollout is {self.updates_per_rollout}, but {other} has no ratio to the policy that rolled "
                "out, so further updates would be those of another policy; leave it at 1."
            )
        brake = None if self.kl_brake == "auto" else self.kl_brake
        if brake is not None and self.beta == 0 and self.objective != "sdpo":
            yield "rl.kl_brake watches the KL, which is measured only with rl.beta above 0; set it, or rl.kl_brake null."
        if brake is not None and self.max_kl is not None and brake >= self.max_kl:
            yield f"rl.kl_brake is {brake:g}, but at rl.max_kl {self.max_kl:g} training stops; choose a lower brake."
        if self.sync_reference is not None and self.beta == 0 and self.objective != "sdpo":
            yield "rl.sync_reference moves the reference model of the KL, but rl.beta is 0, so there is none."

    def _prompt_conflicts(self) -> Iterator[str]:
        """What does not go together with the rows that RL asks about."""
        if self.holdout == "users" and self.holdout_share == 1:
            yield "rl.holdout_share is 1: with rl.holdout users nobody would be left for SFT; choose a share below 1."
        if self.targets != "row" and self.holdout != "none":
            yield (
                f"rl.targets {self.targets} looks targets up in all training rows, those that rl.holdout {self.holdout} keeps "
                "from SFT, too; leave it at row, or set rl.holdout none."
            )
        if self.prompts == "train":
            return
        if self.prompts == "holdout" and self.holdout == "none":
            yield "rl.prompts is holdout, but rl.holdout is none: there are no such rows; set rl.holdout users or last."
        for task in self.tasks:
            if not TASKS[task].reads_history:
                yield (
                    f"rl.prompts is {self.prompts}, but rl.tasks holds {task}, which asks about items, not about rows: SFT has "
                    "seen them all. Name tasks with a history only."
                )
        if self.targets != "row":
            yield (
                f"rl.targets {self.targets} looks targets up in the training rows; with rl.prompts {self.prompts} leave it at "
                "row."
            )
        if self.prompts == "valid" and self.evaluations:
            yield (
                "rl.prompts is valid, so the valid split can choose no model: its rows are trained on. Set rl.evaluations 0, "
                "which keeps the last model, or train on rl.prompts holdout."
            )
        if self.prompts == "valid" and "collaborative" in self.rewards:
            yield (
                "rl.rewards collaborative scores the histories of the training rows; with rl.prompts valid there are none. "
                "Choose another reward."
            )

    def _without_effect(self) -> Iterator[str]:
        """Fields that were changed although another field makes them idle."""
        acts_with = {
            "holdout_share": (self.holdout != "none", "rl.holdout: users or last"),
            "clip": (self.updates_per_rollout > 1, "rl.updates_per_rollout above 1"),
            "refill_rounds": (self.dynamic_sampling == "refill", "rl.dynamic_sampling: refill"),
            "sync_mix": (self.sync_reference is not None, "rl.sync_reference"),
            "sdpo_beta": (self.objective == "sdpo", "rl.objective: sdpo"),
            "collaborative_model": ("collaborative" in self.rewards, "the reward collaborative in rl.rewards"),
        }
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name, (acts, condition) in acts_with.items():
            if not acts and getattr(self, name) != defaults[name]:
                yield f"rl.{name} is set, but it has an effect with {condition} only."
