"""The commands for recommenders that a comparison lacks: every one is taken by the real parser and by what it would start."""

import shutil
import subprocess
from dataclasses import replace

import polars as pl
import pytest

from minionerec.artifacts import Manifest, Recipe
from minionerec.cli import COMMANDS, parse
from minionerec.config import BASELINE_OPTIONS, CODED_BASELINES, NAMING, run_file
from minionerec.report.rivals import LCREC_SHARES, LCREC_TASKS, RIVALS, RunFolder, how_to
from minionerec.rl.early import check_early
from tests.small import leave_one_out

PRESETS = {  # in whose runs the table can be printed, and what they cannot have
    "industrial-tiny": set(),
    "industrial-smollm2": set(),
    "office-tiny": set(),
    "ml-100k": set(),
    "industrial-text": {"SFT + RL", "S-DPO", "D3"},
    "ml-100k-text": {"SFT + RL", "S-DPO", "D3"},
    "beauty-tiny": {"LC-Rec", "BIGRec", "LIGER", "RPG"},
    "industrial-sdpo": set(),
    "industrial-bigrec-tiny": {"SFT + RL", "S-DPO"},  # D3 on titles
    "industrial-tiger": set(),  # whose head_size no other baseline takes
}


def run_of(folder, preset, *options, users=33):
    """A run that has its data and its configuration, as far as commands look at them. It trains on 8 * users + 2 items."""
    config = parse("run", ["--config", preset, *options, "--out", str(folder)])
    dataset = leave_one_out({str(user): [8 * user + step for step in range(12)] for user in range(users)}, 8 * users + 4, 20)
    if config.data.source == "letter":
        catalog = dataset.catalog.with_columns(title=pl.col("item_id"), text=pl.lit(""))
    else:
        catalog = dataset.catalog.with_columns(title=pl.lit("A film"), text=pl.lit("A film"))
    with run_file.recording(config, "data"):
        (folder / "data").mkdir()
        replace(dataset, catalog=catalog).save(folder / "data")
    return RunFolder(folder)


def lines_of(texts, fails="none"):
    """The command lines that a shell starts for each of some texts: names of commands with their options.

    Args:
        fails: a command that ends with an error.
    """
    shell = "IFS=\n"  # no variable is split into words, as in zsh
    shell += f'minionerec() {{ printf "%s\\x1f" "$@"; echo; [ "$1" != {fails} ]; }}\n'
    shell += "\n".join(f"{text}; printf '\\x1e'" for text in texts)
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    return [[split(line) for line in part.splitlines()] for part in done.stdout.split("\x1e")[:-1]]


def split(line):
    words = line.removesuffix("\x1f").split("\x1f")
    name = next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)
    return name, words[len(name.split()) :]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_command_is_one_that_is_taken(preset, tmp_path):
    run = run_of(tmp_path / "my run", preset)  # a shell must not cut its name
    assert run.config == parse("run", ["--config", str(run.folder)])
    hows = {rival.label: how_to(rival, [run]) for rival in RIVALS}
    without = {label: how.note for label, how in hows.items() if how.command is None}
    assert {*without} == PRESETS[preset] and all(note.startswith(f"not in {run.folder}: ") for note in without.values())
    lines = [line for lines in lines_of(how.command for how in hows.values() if how.command) for line in lines]
    assert {options[1] for _, options in lines} == {str(run.folder)}
    like = {}  # commands that differ in the stage of a loop, or in the baseline's name, are parsed once
    for name, options in lines:
        of_model = options[-2:] if "--baseline.model" in options else []
        like.setdefault((name == "baseline", *(word for word in options if word not in of_model)), (name, options))
    for name, options in like.values():
        config = parse(name, options)
        if name == "baseline" and config.baseline.model != run.config.baseline.model:
            assert {getattr(config.baseline, option) for option in BASELINE_OPTIONS} == {None}  # those of the run's baseline
        if config.name.endswith(("-rl", "-sdpo")) or name == "rl":
            check_early(config, ("data", "sid", "sft"))


def lines_for(run, label):
    """The commands for one rival."""
    [rival] = [rival for rival in RIVALS if rival.label == label]
    [lines] = lines_of([how_to(rival, [run]).command])
    return lines


def test_what_the_commands_train(tmp_path):
    run = run_of(tmp_path / "run", "industrial-text")
    for label, tasks in (("BIGRec", [NAMING]), ("LC-Rec", ["history_sid_to_sid", "title_to_sid"])):
        lines = lines_for(run, label)
        assert [name for name, _ in lines] == ["data prepare", "sid", "sft", "eval"]
        config = parse(*lines[-1])
        assert set(tasks) <= set(config.sft.tasks) and not config.model.item_texts and not config.mixture.components
        assert config.folder != run.folder and config.data == run.config.data
        assert config.eval.grounding == ("trained" if label == "BIGRec" else "none")
    assert "description_to_sid" not in config.sft.tasks  # the catalog has no descriptions
    longer = run_of(tmp_path / "titles", "industrial-bigrec-tiny")
    assert "--eval.title_tokens" not in lines_for(longer, "BIGRec")[-1][1]  # it says itself how long a title may be
    lcrec = parse("run", ["--config", "industrial-lcrec-tiny"]).sft
    assert {*LCREC_TASKS} == {*lcrec.tasks} and lcrec.task_shares == LCREC_SHARES


def test_d3_trains_what_is_not_there_or_cannot_be_used(tmp_path):
    run = run_of(tmp_path / "run", "industrial-tiger")
    sft, baseline, evaluation = lines_for(run, "D3")
    assert sft == ("sft", ["--config", str(run.folder)]) and evaluation[0] == "eval"
    assert evaluation[1][2:] == ["--eval.assistant", "sasrec"]
    config = parse(*baseline)
    assert config.baseline.model == "sasrec" and config.baseline.head_size is None

    def make(stage, inputs):
        recipe = Recipe(stage, run.folder / stage, {}, inputs, 0, replace=True)
        with recipe.write():
            pass

    dataset = run.dataset
    shutil.rmtree(run.folder / "data")
    with Recipe("data", run.folder / "data", {}, {}, 0).write() as draft:
        dataset.save(draft.path)
    own = {"data": Manifest.load(run.folder / "data").digest}
    for stage in ("sft", "baselines/sasrec"):
        make(stage, own)
    assert lines_for(run, "D3") == [evaluation]
    replaced = (baseline[0], [*baseline[1], "--replace"])  # else the command would ask
    for inputs in ({"data": "other data's"}, {"sequences": "of a file"}):
        make("baselines/sasrec", inputs)
        assert lines_for(run, "D3") == [replaced, evaluation]
    make("baselines/sasrec", own)
    make("sft", {"data": "other data's"})
    assert lines_for(run, "D3") == [("sft", [*sft[1], "--replace"]), evaluation]


def test_a_run_has_one_rl_model(tmp_path):
    grpo, sdpo = run_of(tmp_path / "grpo", "industrial-tiny"), run_of(tmp_path / "sdpo", "industrial-sdpo")
    for run, label, other, objective in ((grpo, "SFT + RL", "S-DPO", "sdpo"), (sdpo, "S-DPO", "SFT + RL", "grpo")):
        own = ["--config", str(run.folder)]
        assert lines_for(run, label) == [("sft", own), ("rl", own), ("eval", own)]
        config = parse(*lines_for(run, other)[-1])
        assert config.rl.objective == objective and config.folder != run.folder


def test_what_follows_a_stage_that_fails_is_not_started(tmp_path):
    """An evaluation without the model would count as one, and a run would go on without its SIDs."""
    run = run_of(tmp_path / "run", "industrial-tiny")
    hows = [how_to(rival, [run]).command for rival in RIVALS if rival.label in ("D3", "SFT + RL", "S-DPO")]
    assert all({name for name, _ in lines} == {"sft"} for lines in lines_of(hows[:1] + hows[2:], fails="sft"))
    [new] = lines_of(hows[1:2], fails="sid")
    assert [name for name, _ in new] == ["data prepare", "sid"]


def test_a_new_run_trains_the_baseline_that_its_sids_need(tmp_path):
    letter = ("--sid.shipped", "false", "--sid.method", "letter", "--sid.collaborative_model", "sasrec")
    run = run_of(tmp_path / "run", "industrial-tiny", *letter, "--baseline.hidden_size", "32")
    lines = lines_for(run, "S-DPO")
    assert [name for name, _ in lines] == ["data prepare", "baseline", "sid", "sft", "rl", "eval"]
    config = parse(*lines[1])
    assert (config.baseline.model, config.baseline.hidden_size) == ("sasrec", 32)


def test_presets_are_named_for_their_own_data_alone(tmp_path):
    [bigrec] = [rival for rival in RIVALS if rival.label == "BIGRec"]
    runs = {name: run_of(tmp_path / name, name) for name in ("industrial-tiny", "office-tiny")}
    assert how_to(bigrec, [runs["industrial-tiny"]]).note == (
        "or by a preset: bash scripts/rivals.sh industrial-bigrec-tiny (on a GPU industrial-bigrec-smollm2)"
    )
    assert how_to(bigrec, [runs["office-tiny"]]).note == ""


def test_a_baseline_that_needs_more_items_is_not_suggested(tmp_path):
    """What has enough items in its catalog may have too few in its train split."""
    [rpg] = [rival for rival in RIVALS if rival.label == "RPG"]
    few, enough = (run_of(tmp_path / str(users), "industrial-tiny", users=users) for users in (31, 32))
    assert len(few.dataset.catalog) == 252
    assert "fits 256 codes per digit to the items of the train split, but it has only 250 items" in how_to(rpg, [few]).note
    assert str(enough.folder) in how_to(rpg, [few, enough]).command


def test_another_run_may_have_what_one_cannot(tmp_path):
    text, plain = run_of(tmp_path / "text", "industrial-text"), run_of(tmp_path / "plain", "industrial-tiny")
    [d3] = [rival for rival in RIVALS if rival.label == "D3"]
    assert str(plain.folder) in how_to(d3, [text, plain]).command
    assert "an assistant weighs what is written code by code" in how_to(d3, [text]).note


def test_a_folder_without_a_configuration_has_no_commands(tmp_path):
    (tmp_path / "old").mkdir()
    for rival in RIVALS:
        how = how_to(rival, [RunFolder(tmp_path / "old")])
        assert how.command is None and "holds no run.yaml" in how.note


def test_every_coded_baseline_is_among_them():
    assert {*CODED_BASELINES} <= {kind for rival in RIVALS for kind in rival.kinds}
