"""The one configuration: an experiment is one YAML with a section per stage, read into these dataclasses.

Every field has a docstring with its unit and, if the paper states one, the paper's value; `--help` shows them. Values are
checked when the object is made, so that a mistake costs seconds, not a training run.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minionerec.config.baseline import (
    BASELINE_OPTIONS,
    BASELINES,
    CODED_BASELINES,
    FLOORS,
    GENERATIVE_BASELINES,
    NEURAL_BASELINES,
    PLAIN_FLOORS,
    TRIVIAL_BASELINES,
    BaselineConfig,
    BaselineName,
    TitleHelperName,
)
from minionerec.config.checks import bounded, check_fields, check_name, path
from minionerec.config.components import VECTOR_BASELINES, mixes_in
from minionerec.config.data import DataConfig
from minionerec.config.evaluation import CUTOFFS, DTYPES, RANKING_METRICS, RESAMPLES, Dtype, EvalConfig, ReportConfig
from minionerec.config.green import GreenConfig
from minionerec.config.lego import LegoConfig, LegoPlmConfig
from minionerec.config.mixture import MixtureConfig
from minionerec.config.model import ModelConfig
from minionerec.config.pairs import PairsConfig
from minionerec.config.prompts import PromptsConfig
from minionerec.config.rl import RewardName, RlConfig
from minionerec.config.score import ScoreConfig
from minionerec.config.serve import ServeConfig
from minionerec.config.sft import SftConfig, SftMixtureConfig
from minionerec.config.sid import VECTOR_FIELDS, LetterConfig, RqVaeConfig, SidConfig, SidMethod
from minionerec.config.tasks import DEFAULT_TASKS, NAMING, RECOMMENDING, RELEASED_TASKS, TASKS, Task, TaskName
from minionerec.config.yes_no import YesNoConfig
from minionerec.distributed import EngineName
from minionerec.errors import ConfigError

__all__ = [
    "BASELINES",
    "BASELINE_OPTIONS",
    "CODED_BASELINES",
    "CUTOFFS",
    "DEFAULT_TASKS",
    "DTYPES",
    "FLOORS",
    "GENERATIVE_BASELINES",
    "NAMING",
    "NEURAL_BASELINES",
    "PLAIN_FLOORS",
    "RANKING_METRICS",
    "RECOMMENDING",
    "RELEASED_TASKS",
    "RESAMPLES",
    "TASKS",
    "TRIVIAL_BASELINES",
    "VECTOR_BASELINES",
    "VECTOR_FIELDS",
    "BaselineConfig",
    "BaselineName",
    "Config",
    "DataConfig",
    "EvalConfig",
    "GreenConfig",
    "LegoConfig",
    "LegoPlmConfig",
    "LetterConfig",
    "ModelConfig",
    "PairsConfig",
    "PromptsConfig",
    "ReportConfig",
    "RewardName",
    "RlConfig",
    "RqVaeConfig",
    "ScoreConfig",
    "ServeConfig",
    "SftConfig",
    "SftMixtureConfig",
    "SidConfig",
    "SidMethod",
    "Task",
    "TaskName",
    "TitleHelperName",
    "YesNoConfig",
    "not_in_key",
]


def not_in_key(section: str) -> tuple[str, ...]:
    """The fields of a section that no key has: a result does not depend on them, or its manifest says so in another way."""
    kind: Any = Config.__dataclass_fields__[section].default_factory if section in Config.__dataclass_fields__ else None
    return getattr(kind, "NOT_IN_KEY", ())


@dataclass
class Config:
    """One experiment."""

    name: str = "experiment"
    """Name of the run; also its folder under `runs/` if `out` is not given."""
    out: str | None = path()
    """Folder of the run; null: `runs/<name>`."""
    seed: int = bounded(42, 0, 2**32 - 1)  # numpy and scikit-learn take no other
    """Seed of every random choice, from 0 to 2**32 - 1; the same seed on the same machine gives the same result."""
    threads: int = bounded(2, 1, 1024)
    """CPU threads of the numerical libraries, per process, at most two per core; an OMP_NUM_THREADS in the environment wins
    (threads)."""
    engine: EngineName = "processes"
    """Who does work in shards: the launch's processes, or Ray (extra `ray`); same result."""
    engine_workers: int | None = bounded(None, 1, 10_000)
    """Workers of `ray`; null: one per GPU, or per core (workers)."""
    replace: bool = False
    """Replace finished stages that were made from other settings or inputs; without it such a command stops and says what
    differs. On the command line `--replace` needs no value."""
    wait: bool = False
    """If another process is making a stage of this run, wait until it has finished; without it the command stops and names the
    process. On the command line `--wait` needs no value."""
    data: DataConfig = field(default_factory=DataConfig)
    sid: SidConfig = field(default_factory=SidConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    yes_no: YesNoConfig = field(default_factory=YesNoConfig)
    lego: LegoConfig = field(default_factory=LegoConfig)
    green: GreenConfig = field(default_factory=GreenConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_fields("", self)
        if self.engine_workers is not None and self.engine != "ray":
            raise ConfigError(
                f"engine_workers is {self.engine_workers}, but engine is {self.engine}, whose processes a launcher counts: "
                "accelerate launch --num_processes N. Set engine ray, or leave engine_workers out."
            )
        if self.data.columns and self.data.source not in ("csv", "recbole") and self.pairs.source != "csv":
            raise ConfigError(
                f"data.columns has no effect on data.source {self.data.source!r}, whose columns have fixed names; "
                "data.source csv or recbole and pairs.source csv read it. Leave it out."
            )
        if self.sft.train != "full" and self.model.init == "from_scratch":
            raise ConfigError(
                f"sft.train is {self.sft.train}, but model.init is from_scratch: random weights would stay as they are. "
                "Set model.init from_pretrained and model.path, or sft.train full."
            )
        if self.model.init == "from_scratch" and (self.yes_no.train != "full" or self.yes_no.tune_from is not None):
            name = "train is lora" if self.yes_no.train != "full" else f"tune_from is {self.yes_no.tune_from}"
            raise ConfigError(
                f"yes_no.{name}, but model.init is from_scratch: random weights would stay as they are. Set model.init "
                "from_pretrained and model.path, or leave it out."
            )
        if self.sft.history_stride > self.data.max_history:
            raise ConfigError(
                f"sft.history_stride {self.sft.history_stride} is longer than data.max_history {self.data.max_history}: "
                f"training histories would be empty. Set sft.history_stride to at most {self.data.max_history}."
            )
        if self.model.text_output:
            self._check_text_output()
        self._check_wordings()
        self._check_titles()

        if self.sft.mixture.weights != "none" and not self.mixture.components:
            raise ConfigError(
                f"sft.mixture.weights is {self.sft.mixture.weights}, but mixture.components is empty: there is nothing to "
                "train the model through. Name some, such as [popularity, markov, skip, item-knn], or set "
                "sft.mixture.weights none."
            )
        self._check_rl_rows()
        if self.mixture.validation or self.sft.mixture.weights != "none":  # others are refused where they mix something in
            self.check_mixable()
        if self.eval.exclude_history and (self.rl.importance_weights or self.rl.objective == "exact"):
            option = "rl.importance_weights" if self.rl.importance_weights else "rl.objective exact"
            raise ConfigError(
                f"{option} is about the whole catalog, but with eval.exclude_history lists leave a part of it out. Set "
                "eval.exclude_history false, or take another objective."
            )

    def _check_titles(self) -> None:
        """Refuse to ground titles of a model that never wrote any, and to rank by SIDs of one that never wrote any."""
        names = self.sft.task_names
        for name, asked, none in (
            ("eval.grounding", self.eval.grounding, "none"),
            ("eval.title_trie", str(self.eval.title_trie).lower(), "false"),
        ):
            if asked != none and NAMING not in names:
                raise ConfigError(
                    f"{name} is {asked}, but sft.tasks does not name {NAMING}, so the model has never written a title after a "
                    f"history. Add it to sft.tasks, or set {name} {none}."
                )
        limit, written = self.prompts.max_tokens, self.eval.title_tokens
        if self.eval.grounding != "none" and limit is not None and written >= limit:
            raise ConfigError(
                f"eval.title_tokens is {written}, but prompts.max_tokens is {limit}, which prompt and written title have "
                "together, so no prompt is left. Lower eval.title_tokens."
            )
        if self.eval.title_trie and self.model.item_texts:
            raise ConfigError(
                "eval.title_trie searches titles word by word, but model.text_input or model.text_output is true: that model "
                "reads and writes items as SIDs. Set them false, or eval.title_trie false."
            )
        if self.eval.grounding == "base" and self.model.init == "from_scratch":
            raise ConfigError(
                "eval.grounding is base, but model.init is from_scratch: random weights tell no titles apart. Set "
                "eval.grounding trained."
            )
        if self.eval.grounding != "none" and self.model.item_texts:
            raise ConfigError(
                "eval.grounding asks for states of words, but model.text_input or model.text_output is true. Set them false."
            )
        if not any(TASKS[name].answers_with_sid or TASKS[name].reads_history for name in names):
            raise ConfigError(
                f"sft.tasks is [{', '.join(names)}]: none of them asks what comes after a history or which SID an item has, so "
                f"there is nothing to validate the model by. Add {RECOMMENDING} or another task with a history."
            )
        if self.sft.best_metric != "loss" and not self.sft.writes_sids:
            raise ConfigError(
                f"sft.best_metric is {self.sft.best_metric}, but no task of sft.tasks has a SID as its answer, so validations "
                "would rank by what was never trained. Set sft.best_metric loss."
            )
        alone = None if self.eval.title_trie else self.eval.assistant
        for name, helper in (("eval.assistant", alone), ("mixture.components", self.mixture.components)):
            if helper and not self.sft.writes_sids:
                titles = " With eval.title_trie it helps to write titles." if name == "eval.assistant" else ""
                raise ConfigError(
                    f"{name} is {helper}, but no task of sft.tasks has a SID as its answer, so SIDs of a model that was never "
                    f"trained to write any would be weighed with it. Leave it out, or add {RECOMMENDING} to sft.tasks.{titles}"
                )

    def _check_wordings(self) -> None:
        """Refuse what needs several wordings where there is one, and what needs the trees of all epochs where they differ."""
        several = self.prompts.wording == "several"
        if self.eval.wordings == "mean" and not several:
            raise ConfigError(
                f"eval.wordings is mean, but prompts.wording is {self.resolved_prompts.wording}, which has one for each task. "
                "Set prompts.wording several, which the model must be trained with, or eval.wordings first."
            )
        if self.eval.wordings == "mean" and self.eval.grounding != "none" and not self.sft.writes_sids:
            raise ConfigError(
                "eval.wordings is mean, but no task of sft.tasks has a SID as its answer, and titles (eval.grounding) are "
                f"written in the first wording. Set eval.wordings first, or add {RECOMMENDING} to sft.tasks."
            )
        if several and self.sft.micro_tokens is not None:
            raise ConfigError(
                "prompts.wording is several, so each epoch has trees of other lengths, but sft.micro_tokens asks for the "
                "longest before the first. Leave it null and set sft.micro_batch."
            )

    def _check_rl_rows(self) -> None:
        """Refuse what would show a mixture the rows that RL is trained on."""
        if self.rl.holdout != "none" and self.sft.mixture.weights != "none":
            raise ConfigError(
                f"rl.holdout is {self.rl.holdout}, but sft.mixture.weights is {self.sft.mixture.weights}: the components count "
                "all training rows, those that are held out, too. Set sft.mixture.weights none, or rl.holdout none."
            )
        if self.rl.prompts == "valid" and self.mixture.components:
            raise ConfigError(
                "rl.prompts is valid, but mixture.components names some: their weights are fitted on the valid split, which "
                "RL's model has learnt by then. Set mixture.components [], or rl.prompts holdout."
            )
        if self.rl.prompts == "valid" and self.eval.assistant is not None and self.eval.assistant_weight is None:
            raise ConfigError(
                f"rl.prompts is valid, but eval.assistant is {self.eval.assistant} without a weight: minionerec d3 would "
                "choose it on the valid split, which RL's model has learnt by then. Set eval.assistant_weight, or rl.prompts "
                "holdout."
            )

    def check_mixable(self) -> None:
        """Refuse to mix anything into scores over the vocabulary.

        Raises:
            ConfigError: `mixture.components` names some, and `eval.normalise_over` is not `catalog`.
        """
        if self.mixture.components and self.eval.normalise_over != "catalog":
            raise ConfigError(
                "mixture.components mixes distributions over the catalog into the model's, but eval.normalise_over is "
                f"{self.eval.normalise_over}: the model's probabilities of the SIDs do not add up to 1. Set "
                "eval.normalise_over catalog (and sft.normalise_over catalog, so that the model is trained for it), or "
                "mixture.components []."
            )

    def _check_text_output(self) -> None:
        """Refuse what the mixture with a text distribution cannot be computed with."""
        if self.eval.assistant is not None:
            raise ConfigError(
                f"model.text_output is true, but eval.assistant is {self.eval.assistant}: an assistant weighs what is written "
                "code by code, not a mixture with a text distribution. Leave one of the two out."
            )
        for name, over in (("sft", self.sft.normalise_over), ("eval", self.eval.normalise_over)):
            if over != "catalog":
                raise ConfigError(
                    f"model.text_output is true, but {name}.normalise_over is {over}: only over the catalog the probabilities "
                    f"of all items add up to 1, as those of the text distribution do. Set {name}.normalise_over catalog."
                )
        if self.eval.oracle_examples:
            raise ConfigError(
                f"model.text_output is true, but eval.oracle_examples is {self.eval.oracle_examples}: the search is replayed "
                "for models that write code by code only. Set eval.oracle_examples 0; the lists' certificates stay."
            )
        if self.sft.level_weights is not None:
            raise ConfigError(
                f"model.text_output is true, but sft.level_weights is {self.sft.level_weights}: a mixture weighs whole items, "
                "not their tokens. Leave it out."
            )

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.out) if self.out else Path("runs") / self.name

    @property
    def resolved_prompts(self) -> PromptsConfig:
        """The section `prompts` with its wording chosen."""
        wording = self.prompts.wording or ("released" if self.sft.tasks == "released" else "plain")
        return dataclasses.replace(self.prompts, wording=wording)

    @property
    def prompts_for_training(self) -> PromptsConfig:
        """What SFT, RL and their validations ask: `resolved_prompts` without `eval_style`, which changes evaluation only."""
        return self.resolved_prompts.for_training()

    def decoding(self, weights: Dtype = "float32") -> dict[str, Any]:
        """The settings that decide the lists of the validations that choose a model.

        Args:
            weights: number format of the model that is trained. It is asked in `eval.dtype` only if that is shorter.
        """
        settings = {name: getattr(self.eval, name) for name in ("num_beams", "normalise_over", "exclude_history")}
        if weights == "float32" != self.eval.dtype:  # absent otherwise, as it was before validations took it
            settings["dtype"] = self.eval.dtype
        return settings | ({"mixture": self.mixture_in_training} if self.mixture.validation else {})

    def mixes_in(self, stage: str) -> bool:
        """Whether a training stage reads `mixture.components`, see `components.mixes_in`."""
        return mixes_in(self.recorded, stage)

    @property
    def mixture_in_training(self) -> dict[str, Any]:
        """The fields of `mixture` that a training through the mixture reads, or one that is validated with it.

        Both fit its weights to all that they validate. `valid_examples` is that of the stage `mixture`; it stands here as null,
        as it was by default when it counted, so that models of then stay current.
        """
        return {**self.key_fields("mixture")["mixture"], "valid_examples": None}

    @property
    def recorded(self) -> dict[str, Any]:
        """Every field that says what a run is, as plain values: all but where it lies and how commands treat and serve it."""
        others = ("out", "engine", "engine_workers", "replace", "wait", "serve")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in others}

    def section(self, *names: str) -> dict[str, Any]:
        """The named sections as plain values, for manifests."""
        return {name: dataclasses.asdict(getattr(self, name)) for name in names}

    def key_fields(self, *names: str) -> dict[str, Any]:
        """The named sections for keys, without each section's `NOT_IN_KEY`: a stage stays current if these fields change."""
        sections = self.section(*names)
        return {
            name: {field: value for field, value in values.items() if field not in not_in_key(name)}
            for name, values in sections.items()
        }
