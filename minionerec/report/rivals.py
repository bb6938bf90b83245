"""The recommenders that a comparison should have: what stands for each, its published row, and the command that makes it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minionerec.artifacts import MANIFEST, Manifest
from minionerec.config import TASKS
from minionerec.report.evaluated import Evaluated
from minionerec.report.published import PAPER


@dataclass(frozen=True)
class Rival:
    """A recommender that such a table is expected to have.

    Attributes:
        label: its name for display.
        kinds: what stands for it, see `kind_of`.
        published: its row in the published tables; None if they have none.
        command: makes it; `{run}` stands for the folder of a run with data and semantic IDs.
        of_sids: whether the command goes on from a model, or with settings, of that run that must write SIDs.
    """

    label: str
    kinds: tuple[str, ...]
    published: str | None
    command: str
    of_sids: bool = False


_BASELINE = "minionerec baseline --config {run} --baseline.model "
_WITHOUT_RL = (
    "for stage in 'data prepare' sid sft eval; do minionerec $stage --config {{run}} --name {name} {options}; done; presets "
    "for Industrial_and_Scientific: bash scripts/rivals.sh industrial-{name}-tiny (or -smollm2, on a GPU)"
)
RIVALS = (
    Rival("SFT + RL", ("rl",), PAPER, "minionerec rl --config {run}; minionerec eval --config {run}", True),
    Rival(
        "S-DPO",
        ("sdpo",),
        "S-DPO",
        "minionerec run --config {run} --name sdpo --rl.objective sdpo --rl.rollouts uniform --rl.add_target true",
        True,
    ),
    Rival(
        "D3",
        ("sft-d3", "rl-d3", "sdpo-d3", "lcrec-d3"),
        "D3",
        _BASELINE + "sasrec; minionerec eval --config {run} --eval.assistant sasrec",
        True,
    ),
    Rival("LC-Rec", ("lcrec",), "LCRec", _WITHOUT_RL.format(name="lcrec", options="--prompts.wording several"), True),
    Rival(
        "BIGRec",
        ("sft-titles",),
        "BIGRec",
        _WITHOUT_RL.format(
            name="bigrec",
            options="--sft.tasks '[history_title_to_title]' --sft.normalise_over vocabulary --sft.best_metric loss "
            "--sft.valid_examples null --eval.grounding trained",
        ),
    ),
    Rival("TIGER", ("tiger",), "TIGER", _BASELINE + "tiger"),
    Rival("LIGER", ("liger",), None, _BASELINE + "liger"),
    Rival("Lazy decoder (OneRec-V2)", ("lazy",), None, _BASELINE + "lazy"),
    Rival("RPG", ("rpg",), None, _BASELINE + "rpg"),
    Rival("HSTU", ("hstu",), "HSTU", _BASELINE + "hstu"),
    Rival("SASRec", ("sasrec", "sasrec-sampled", "sasrec-released"), "SASRec", _BASELINE + "sasrec"),
    Rival("Caser", ("caser", "caser-released"), "Caser", _BASELINE + "caser"),
    Rival("GRU4Rec", ("gru4rec", "gru4rec-released"), "GRU4Rec", _BASELINE + "gru4rec"),
)
LABELS_OF_KINDS = {  # of kinds that are no names
    f"{kind}{suffix}": f"{label}{addition}"
    for kind, label in (("sdpo", "SFT + S-DPO"), ("lcrec", "LC-Rec"))
    for suffix, addition in (("", ""), ("-mixture", ", mixed"), ("-d3", ", assisted (D3)"))
}
PUBLISHED_ROW = {kind: rival.published for rival in RIVALS for kind in rival.kinds}


def command_of(rival: Rival, folders: Sequence[Path]) -> str:
    """The command that makes a rival in the first of some runs; with `of_sids`, in the first whose model writes no texts alone.

    Raises:
        ArtifactError: the manifest of a run's SFT model is damaged.
    """
    fitting = [folder for folder in folders if not (rival.of_sids and _writes_texts_alone(folder))]
    if fitting:
        return rival.command.replace("{run}", shlex.quote(str(fitting[0])))
    return (
        rival.command.replace("{run}", "RUN")
        + ", where RUN is another run: sft.tasks of this one has no task whose answer is a SID"
    )


def _writes_texts_alone(folder: Path) -> bool:
    """Whether a run has an SFT model that was trained on tasks without a SID as the answer."""
    if not (folder / "sft" / MANIFEST).is_file():
        return False
    tasks = Manifest.load(folder / "sft").config["sft"]["tasks"]
    return tasks != "released" and not any(TASKS[task].answers_with_sid for task in tasks if task in TASKS)


def kind_of(run: Evaluated) -> str:
    """Which recommender this is among `RIVALS`: its name, or that with `sdpo` or `lcrec` for a stage whose settings make it so.

    `rl-d3` of a model that S-DPO trained is `sdpo-d3`.
    """
    stage, dash, how = run.name.partition("-")
    if stage == "rl" and run.setting(("rl", "rl", "objective")) == "sdpo":
        stage = "sdpo"
    if stage == "sft" and how != "titles" and run.setting(("sft", "prompts", "wording")) == "several":
        stage = "lcrec"
    return stage + dash + how
