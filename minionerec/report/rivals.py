"""The recommenders that a comparison should have: what stands for each, its published row, and the command that makes it."""

from dataclasses import dataclass

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
    """

    label: str
    kinds: tuple[str, ...]
    published: str | None
    command: str


_BASELINE = "minionerec baseline --config {run} --baseline.model "
_WITHOUT_RL = (
    "for stage in 'data prepare' sid sft eval; do minionerec $stage --config {{run}} --name {name} {options}; done; presets "
    "for Industrial_and_Scientific: bash scripts/rivals.sh industrial-{name}-tiny (or -smollm2, on a GPU)"
)
RIVALS = (
    Rival("SFT + RL", ("rl",), PAPER, "minionerec rl --config {run}; minionerec eval --config {run}"),
    Rival(
        "S-DPO",
        ("sdpo",),
        "S-DPO",
        "minionerec run --config {run} --name sdpo --rl.objective sdpo --rl.rollouts uniform --rl.add_target true",
    ),
    Rival("D3", ("sft-d3", "rl-d3"), "D3", _BASELINE + "sasrec; minionerec eval --config {run} --eval.assistant sasrec"),
    Rival("LC-Rec", ("lcrec",), "LCRec", _WITHOUT_RL.format(name="lcrec", options="--prompts.wording several")),
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
LABELS_OF_KINDS = {"sdpo": "SFT + S-DPO", "lcrec": "LC-Rec"}  # of kinds that are no names
PUBLISHED_ROW = {kind: rival.published for rival in RIVALS for kind in rival.kinds}


def kind_of(run: Evaluated) -> str:
    """Which recommender this is among `RIVALS`: its name, or what its settings make of it, `sdpo` or `lcrec`."""
    if run.name == "rl" and run.setting(("rl", "rl", "objective")) == "sdpo":
        return "sdpo"
    if run.name == "sft" and run.setting(("sft", "prompts", "wording")) == "several":
        return "lcrec"
    return run.name
