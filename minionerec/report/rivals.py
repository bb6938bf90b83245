"""The recommenders that a comparison should have: what stands for each, its published row, and the command that makes it.

A command is made of a run's own configuration: it sets what the rival needs and takes back what would contradict it, and it is
printed only if the configuration takes it. Where a rival cannot be had, the reason is printed in its place.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from minionerec.artifacts import MANIFEST, Manifest, changed_input
from minionerec.baselines.coded import check_coded
from minionerec.config import (
    BASELINE_OPTIONS,
    CODED_BASELINES,
    NAMING,
    TASKS,
    BaselineConfig,
    Config,
    EvalConfig,
    RlConfig,
    run_file,
)
from minionerec.config.fields import value_of, with_values
from minionerec.data.dataset import Dataset
from minionerec.errors import ArtifactError, ConfigError, DataError, MiniOneRecError
from minionerec.prompts.tasks import item_texts
from minionerec.report.evaluated import Evaluated
from minionerec.report.published import PAPER
from minionerec.rl.early import check_early
from minionerec.training.early import check_assistant, check_valid_rows

Changes = Mapping[str, Any]  # values of fields, by dotted name

_ASSISTANT = "sasrec"  # D3's
_INDUSTRIAL = "Industrial_and_Scientific"  # the category of scripts/rivals.sh's presets
# Of a language model as the papers have it: no text vector is read, nothing is mixed in.
_PLAIN_MODEL = {
    "model.text_input": False,
    "model.text_output": False,
    "sft.mixture.weights": "none",
    "sft.mixture.weight": None,
    "mixture.components": [],
    "mixture.sequential": None,
    "mixture.validation": False,
}
_MODEL_ALONE = {
    f"eval.{name}": getattr(EvalConfig, name)
    for name in EvalConfig.NOT_IN_KEY
    if name.startswith(("assistant", "title_")) or name in ("grounding", "length_penalty")
}
_SDPO = {"objective": "sdpo", "rollouts": "uniform", "add_target": True, "rewards": {"rule": 1.0}}
_OF_GRPO = (  # or of a reward that a group drawn uniformly does not have
    "loss",
    "advantages",
    "dynamic_sampling",
    "refill_rounds",
    "importance_weights",
    "updates_per_rollout",
    "clip",
    "collaborative_model",
)
LCREC_TASKS = [name for name in TASKS if name != NAMING]
LCREC_SHARES = {  # LC-Rec takes parts, too
    "description_to_sid": 0.5,
    "sid_to_description": 0.25,
    "history_sid_to_title": 0.2,
    "history_sid_to_description": 0.05,
    "history_title_to_sid": 0.1,
}


class RunFolder:
    """A run in which a rival may be trained, or whose configuration a new run takes over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> Config:
        """The run's configuration."""
        return run_file.configuration(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data."""
        return Dataset.load(self.folder / "data")

    def has(self, artefact: str) -> bool:
        """Whether the run has finished an artefact."""
        return (self.folder / artefact / MANIFEST).is_file()

    def usable(self, artefact: str) -> bool:
        """Whether the run has finished an artefact that is whole, and was made of its own data as they are."""
        try:
            manifest = Manifest.load(self.folder / artefact)
        except ArtifactError:
            return False
        return "data" in manifest.inputs and changed_input(self.folder, manifest) is None

    def training(self, artefact: str, words: str, changes: Changes | None = None) -> list[str]:
        """The command that makes an artefact, as `command` gives it, unless a usable one is there; another one is replaced."""
        if self.usable(artefact):
            return []
        return [self.command(words, changes) + " --replace" * self.has(artefact)]

    def command(self, words: str, changes: Changes | None = None, name: str | None = None) -> str:
        """A command line in this run, or in a new one with its configuration.

        Args:
            words: of the command, such as `baseline`.
            changes: of fields.
            name: of the new run.
        """
        return f"minionerec {words} {self.options(changes or {}, name)}"

    def options(self, changes: Changes, name: str | None = None) -> str:
        """The options of such a command."""
        named = [] if name is None else [f"--name {shlex.quote(name)}"]
        return " ".join([f"--config {shlex.quote(str(self.folder))}", *named, *self.changed(changes)])

    def changed(self, changes: Changes) -> list[str]:
        """The options for those of some fields that the run has otherwise; a baseline is always named."""
        changed = [field for field, value in changes.items() if value != value_of(self.config, field)]
        named = [field for field in changes if field in changed or field == "baseline.model"]
        return [f"--{field} {shlex.quote(_as_yaml(changes[field]))}" for field in named]


def _as_yaml(value: Any) -> str:
    """A value as the command line takes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


@dataclass(frozen=True)
class Rival:
    """A recommender that such a table is expected to have.

    Attributes:
        label: its name for display.
        kinds: what stands for it, see `kind_of`.
        published: its row in the published tables; None if they have none.
        commands: that make it in a run; they raise a `MiniOneRecError` that says why there are none.
        preset: the beginning of its presets' names, for those who would rather have a run of its own; None for none.
    """

    label: str
    kinds: tuple[str, ...]
    published: str | None
    commands: Callable[[RunFolder], list[str]]
    preset: str | None = None


@dataclass(frozen=True)
class HowTo:
    """How a recommender is had.

    Attributes:
        command: makes it; None if none can.
        note: why there is no command, or what else is to be known; empty for nothing.
    """

    command: str | None
    note: str = ""


def _baseline(model: str) -> Callable[[RunFolder], list[str]]:
    def commands(run: RunFolder) -> list[str]:
        changes = baseline_changes(run.config, model)
        changed = with_values(run.config, changes)
        if model in CODED_BASELINES:
            check_coded(changed, run.dataset)
        return [run.command("baseline", changes)]

    return commands


def _tiger(run: RunFolder) -> list[str]:
    if run.config.sid.method == "letter" and not run.config.sid.shipped:
        raise ConfigError("on SIDs of LETTER it is LETTER-TIGER; TIGER needs a run with SIDs of another method.")
    return _baseline("tiger")(run)


def baseline_changes(config: Config, model: str) -> dict[str, Any]:
    """What a run's section `baseline` must say for another baseline than the last: its options are that one's alone."""
    changes: dict[str, Any] = {"baseline.model": model}
    if config.baseline.model != model:
        changes |= {f"baseline.{name}": None for name in (*BASELINE_OPTIONS, "sequences", "weights")}
        changes["baseline.protocol"] = BaselineConfig.protocol
    return changes


def _d3(run: RunFolder) -> list[str]:
    helper = baseline_changes(run.config, _ASSISTANT)
    changes: dict[str, Any] = {"eval.assistant": _ASSISTANT}
    if not run.config.sft.writes_sids and NAMING in run.config.sft.task_names:
        changes["eval.title_trie"] = True  # titles, as D3 has them
    changed = with_values(run.config, {**helper, **changes})
    check_assistant(changed, ("baseline",))
    if changed.eval.assistant_weight is None:
        check_valid_rows(run.config, "the weight of an assistant is chosen on it", "set eval.assistant_weight")
    assistant = run.training(f"baselines/{_ASSISTANT}", "baseline", helper)
    return [*run.training("sft", "sft"), *assistant, run.command("eval", changes)]


def _rl(run: RunFolder) -> list[str]:
    default = RlConfig()
    return _by_rl(run, "rl", {f"rl.{name}": getattr(default, name) for name in (*_SDPO, "sdpo_beta")})


def _sdpo(run: RunFolder) -> list[str]:
    default = RlConfig()
    others = {f"rl.{name}": getattr(default, name) for name in _OF_GRPO}
    return _by_rl(run, "sdpo", {**{f"rl.{name}": value for name, value in _SDPO.items()}, **others})


def _by_rl(run: RunFolder, kind: str, changes: Changes) -> list[str]:
    """In the run itself if its section `rl` is of this kind; else in a new run, since a run has one RL model."""
    config = run.config
    if (config.rl.objective == "sdpo") == (kind == "sdpo"):
        check_early(config)
        return [*run.training("sft", "sft"), run.command("rl"), run.command("eval")]
    check_early(with_values(config, changes))
    return [_new_run(run, kind, ("sft", "rl", "eval"), {**changes, **_MODEL_ALONE})]


def _lcrec(run: RunFolder) -> list[str]:
    texts = item_texts(run.dataset)
    _refuse_untitled(run.dataset)
    tasks = [name for name in LCREC_TASKS if any(texts.descriptions) or not TASKS[name].needs_descriptions]
    changes = {
        "prompts.wording": "several",
        "sft.tasks": tasks,
        "sft.task_shares": {task: share for task, share in LCREC_SHARES.items() if task in tasks},
        "sft.history_stride": 1,
        "sft.micro_tokens": None,
        **_PLAIN_MODEL,
        **_MODEL_ALONE,
        "eval.wordings": "mean",
    }
    return [_new_run(run, "lcrec", ("sft", "eval"), changes)]


def _bigrec(run: RunFolder) -> list[str]:
    _refuse_untitled(run.dataset)
    config = run.config
    from_scratch = config.model.init == "from_scratch"  # whose states before its training say nothing
    changes = {
        "sft.tasks": [NAMING],
        "sft.task_shares": {},
        "sft.normalise_over": "vocabulary",
        "sft.smoothing": 0.0,
        "sft.level_weights": None,
        "sft.best_metric": "loss",
        "sft.valid_examples": None,
        "sft.train": "full" if config.sft.train == "sid_rows" else config.sft.train,
        **_PLAIN_MODEL,
        **{field: value for field, value in _MODEL_ALONE.items() if field not in ("eval.title_beams", "eval.title_tokens")},
        "prompts.wording": None if config.prompts.wording == "several" else config.prompts.wording,
        "eval.wordings": "first",
        "eval.grounding": "trained" if from_scratch else "base",
    }
    return [_new_run(run, "bigrec", ("sft", "eval"), changes)]


def _refuse_untitled(dataset: Dataset) -> None:
    """Refuse what reads titles where a source has no texts, whose ids then stand for titles, or where a title is missing.

    Raises:
        DataError: not every item has a title.
    """
    if not any(text.strip() for text in dataset.catalog["text"]):
        raise DataError("the catalog has no texts, which it reads.")
    if missing := sum(not title.strip() for title in dataset.catalog["title"]):
        raise DataError(f"{missing} of {len(dataset.catalog)} items have no title, which it reads.")


def _new_run(run: RunFolder, suffix: str, stages: Sequence[str], changes: Changes) -> str:
    """All stages of a new run, with the baselines that its settings need, as one line; it ends with a stage that fails.

    The options stand once, in an array (not named `options`, which zsh keeps): zsh does not split a variable of
    several words, as a loop over stages would need it.
    """
    changed = with_values(run.config, {**changes, "name": f"{run.config.name}-{suffix}", "out": None})
    words = ["data prepare", *_helpers(run, changed), "sid", *stages]
    stages_of_it = " && ".join(f'minionerec {word} "${{run[@]}}"' for word in words)
    return f"run=({run.options(changes, changed.name)}); {stages_of_it}"


def _helpers(run: RunFolder, changed: Config) -> Iterator[str]:
    """The baselines that a new run needs before its other stages, with the options that they have in the old one."""
    names = (None if changed.sid.shipped else changed.sid.collaborative_model, changed.mixture.sequential)
    for name in dict.fromkeys(name for name in names if name is not None):
        changes = baseline_changes(run.config, name)
        if run.has(f"baselines/{name}"):
            recorded = Manifest.load(run.folder / "baselines" / name).config["baseline"]
            changes |= {f"baseline.{option}": recorded.get(option) for option in BASELINE_OPTIONS}
        yield " ".join(["baseline", *run.changed({**changes, "baseline.model": name})])


RIVALS = (
    Rival("SFT + RL", ("rl",), PAPER, _rl),
    Rival("S-DPO", ("sdpo",), "S-DPO", _sdpo),
    Rival("D3", ("sft-d3", "rl-d3", "sdpo-d3", "lcrec-d3", "sft-titles-d3"), "D3", _d3),
    Rival("LC-Rec", ("lcrec",), "LCRec", _lcrec, "industrial-lcrec"),
    Rival("BIGRec", ("sft-titles", "sft-titles-trie"), "BIGRec", _bigrec, "industrial-bigrec"),
    Rival("TIGER", ("tiger",), "TIGER", _tiger),
    Rival("LIGER", ("liger",), None, _baseline("liger")),
    Rival("Lazy decoder (OneRec-V2)", ("lazy",), None, _baseline("lazy")),
    Rival("RPG", ("rpg",), None, _baseline("rpg")),
    Rival("HSTU", ("hstu",), "HSTU", _baseline("hstu")),
    Rival("SASRec", ("sasrec", "sasrec-sampled", "sasrec-released"), "SASRec", _baseline("sasrec")),
    Rival("Caser", ("caser", "caser-released"), "Caser", _baseline("caser")),
    Rival("GRU4Rec", ("gru4rec", "gru4rec-released"), "GRU4Rec", _baseline("gru4rec")),
)
LABELS_OF_KINDS = {  # of kinds that are no names
    f"{kind}{suffix}": f"{label}{addition}"
    for kind, label in (("sdpo", "SFT + S-DPO"), ("lcrec", "LC-Rec"))
    for suffix, addition in (("", ""), ("-mixture", ", mixed"), ("-d3", ", assisted (D3)"))
} | {"letter-tiger": "LETTER-TIGER"}
PUBLISHED_ROW = {kind: rival.published for rival in RIVALS for kind in rival.kinds}


def how_to(rival: Rival, runs: Sequence[RunFolder]) -> HowTo:
    """How a rival is had in the first of some runs that can have it; if none can, why the first cannot."""
    reasons = []
    for run in runs:
        try:
            preset = _preset_of(rival, run.config)
            return HowTo(" && ".join(rival.commands(run)), preset)
        except MiniOneRecError as error:
            reasons.append(f"not in {run.folder}: {error}")
    return HowTo(None, reasons[0])


def _preset_of(rival: Rival, config: Config) -> str:
    """Words on a rival's presets, if they are of the run's data."""
    if rival.preset is None or (config.data.source, config.data.category) != ("released", _INDUSTRIAL):
        return ""
    return f"or by a preset: bash scripts/rivals.sh {rival.preset}-tiny (on a GPU {rival.preset}-smollm2)"


def kind_of(run: Evaluated) -> str:
    """Which recommender this is among `RIVALS`: its name, or that with `sdpo` or `lcrec` for a stage whose settings make it so.

    `rl-d3` of a model that S-DPO trained is `sdpo-d3`. TIGER on SIDs of LETTER is `letter-tiger`, which has no published row.
    """
    if run.name == "tiger" and run.setting(("sid", "sid", "method")) == "letter":
        return "letter-tiger"
    stage, dash, how = run.name.partition("-")
    if stage == "rl" and run.setting(("rl", "rl", "objective")) == "sdpo":
        stage = "sdpo"
    if stage == "sft" and not how.startswith("titles") and run.setting(("sft", "prompts", "wording")) == "several":
        stage = "lcrec"
    return stage + dash + how
