import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from minionerec import pipeline
from minionerec.cli import main, parse
from minionerec.config import (
    VECTOR_BASELINES,
    BaselineConfig,
    Config,
    DataConfig,
    EvalConfig,
    MixtureConfig,
    ModelConfig,
    RlConfig,
    SftConfig,
    SftMixtureConfig,
    SidConfig,
    run_file,
)
from minionerec.config.run_file import RUN_FILE, load, other_settings, recording
from minionerec.errors import ArtifactError, ConfigError, TrainingError
from tests.small import write_config


def make(config, stage):
    """Leave what a finished stage leaves."""
    with recording(config, stage):
        (config.folder / stage).mkdir(parents=True)
        (config.folder / stage / "manifest.json").write_text("{}")


@pytest.fixture
def config(tmp_path):
    return Config(name="Lamps ✓", out=str(tmp_path / "run"), sft=SftConfig(epochs=2, learning_rate=1e-5))


def test_the_file_is_for_people_too(config):
    make(config, "data")
    lines = (config.folder / RUN_FILE).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# What this run's artefacts were made with") and "--config" in lines[0]
    assert lines[1:5] == ["name: Lamps ✓", "seed: 42", "threads: 2", ""] and "sft:" in lines and "  epochs: 2" in lines
    values = load(config.folder)
    assert (
        set(values)
        == set(config.recorded)
        == set(vars(config)) - {"out", "engine", "engine_workers", "replace", "wait", "serve"}
    )
    assert os.listdir(config.folder.parent) == ["run"] and sorted(os.listdir(config.folder)) == ["data", RUN_FILE]


def test_a_stage_updates_the_sections_that_it_reads(config):
    make(config, "data")
    later = replace(
        config, name="other", seed=1, threads=7, data=DataConfig(max_history=5), sft=SftConfig(), rl=RlConfig(beta=1)
    )
    make(later, "sft")
    values = load(config.folder)
    assert (values["name"], values["threads"], values["data"]["max_history"]) == ("Lamps ✓", 2, 20)
    assert (values["seed"], values["sft"]["epochs"], values["rl"]["beta"]) == (1, SftConfig().epochs, RlConfig().beta)


@pytest.mark.parametrize(
    ("before", "now", "after"),
    [
        ({"beta": 1.0}, {"holdout": "last", "holdout_share": 0.5}, {"beta": 1.0, "holdout": "last", "holdout_share": 0.5}),
        ({"beta": 1.0, "holdout": "users"}, {}, {"beta": 1.0}),
        ({"beta": 1.0, "holdout": "users", "prompts": "holdout"}, {"beta": 2.0}, {"beta": 2.0}),  # no rows for such prompts
    ],
)
def test_sft_records_the_rows_that_it_left_to_rl(config, before, now, after):
    make(replace(config, rl=RlConfig(**before)), "data")
    with pytest.raises(ConfigError), recording(replace(config, rl=RlConfig(**now)), "sft"):
        raise ConfigError("refused before it began")
    assert load(config.folder)["rl"] == vars(RlConfig(**before))
    make(replace(config, rl=RlConfig(**now)), "sft")
    assert load(config.folder)["rl"] == vars(RlConfig(**after))
    parse("rl", ["--config", str(config.folder)])


@pytest.mark.parametrize("stage", ["eval", "baseline"])
def test_another_evaluation_of_a_trained_model_leaves_what_it_was_trained_with(config, stage):
    otherwise = replace(config, seed=1, eval=EvalConfig(num_beams=7))
    with recording(otherwise, stage):
        pass
    assert load(config.folder)["eval"]["num_beams"] == 7  # no model was trained with the old number
    make(config, "sft")
    with recording(otherwise, stage):
        pass
    values = load(config.folder)
    assert (values["seed"], values["eval"]["num_beams"]) == (config.seed, config.eval.num_beams)


CATALOG = {"eval": EvalConfig(normalise_over="catalog")}
THROUGH = SftConfig(tasks=["history_sid_to_sid"], normalise_over="catalog", mixture=SftMixtureConfig("em"))


@pytest.mark.parametrize(
    ("trained_with", "stage", "kept"),
    [
        ({"sft": THROUGH}, "sft", True),
        ({"sft": SftConfig(best_metric="NDCG@10"), "mixture": MixtureConfig(["markov"], validation=True)}, "sft", True),
        ({"sft": SftConfig(), "mixture": MixtureConfig(["markov"], validation=True)}, "sft", False),  # validated by its loss
        ({"mixture": MixtureConfig(["markov"], validation=True)}, "rl", True),
        ({"rl": RlConfig(evaluations=0), "mixture": MixtureConfig(["markov"], validation=True)}, "rl", False),
        ({}, "sft", False),
        ({}, "rl", False),
    ],
)
def test_the_components_that_a_model_was_trained_with_stay(config, trained_with, stage, kept):
    """Whatever is fitted to it or evaluated later; of a model that was trained without any they are those fitted last."""
    config = replace(config, **{"mixture": MixtureConfig(["markov"]), **CATALOG, **trained_with})
    make(config, "data")
    make(config, stage)
    before = load(config.folder)["mixture"]
    with recording(replace(config, mixture=MixtureConfig(["popularity"], per_bucket=False)), "mixture"):
        pass
    with recording(replace(config, mixture=MixtureConfig(["skip"])), "eval"):
        pass
    after = load(config.folder)["mixture"]
    assert after == before if kept else after == vars(MixtureConfig(["popularity"], per_bucket=False))


def test_rl_without_a_mixture_leaves_the_one_that_sft_was_trained_through(config):
    config = replace(config, sft=THROUGH, mixture=MixtureConfig(["markov"]), **CATALOG)
    make(config, "sft")
    make(replace(config, mixture=MixtureConfig(["skip"])), "rl")
    assert load(config.folder)["mixture"]["components"] == ["markov"]
    shutil.rmtree(config.folder / "rl")
    make(replace(config, mixture=MixtureConfig(["skip"], validation=True)), "rl")  # it ranks with them: it decides
    assert load(config.folder)["mixture"]["components"] == ["skip"]


def test_a_mixture_that_is_only_fitted_does_not_say_that_the_model_was_validated_with_it(config):
    config = replace(config, sft=SftConfig(best_metric="NDCG@10"), **CATALOG)
    make(config, "sft")
    with recording(replace(config, mixture=MixtureConfig(["markov"], validation=True)), "mixture"):
        pass
    assert load(config.folder)["mixture"] == vars(MixtureConfig(["markov"]))


@pytest.mark.parametrize("shipped", [True, False])
@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        ("mixture", {"mixture": MixtureConfig(["text"])}),
        ("sft", {"mixture": MixtureConfig(["text"]), "sft": THROUGH}),
        ("sft", {"model": ModelConfig(text_input=True)}),
        ("rl", {"mixture": MixtureConfig(["text"], validation=True)}),
        ("baseline", {"baseline": BaselineConfig(model="text")}),
        *(("baseline", {"baseline": BaselineConfig(model=name)}) for name in VECTOR_BASELINES),
        ("baseline", {"baseline": BaselineConfig(model="mixture", components=["text"])}),
    ],
)
def test_of_shipped_sids_it_holds_which_vectors_were_read(config, stage, fields, shipped):
    config = replace(config, sid=SidConfig(shipped=shipped), **CATALOG)
    make(config, "sid")
    other = SidConfig(shipped=shipped, encoder="tfidf", tfidf_dimensions=9, levels=2)
    with recording(replace(config, sid=other, mixture=MixtureConfig(["markov"])), stage):
        pass  # it reads none
    assert load(config.folder)["sid"]["encoder"] == "minilm"
    make(replace(config, sid=other, **fields), stage)
    stored = load(config.folder)["sid"]
    assert (stored["encoder"], stored["tfidf_dimensions"]) == (("tfidf", 9) if shipped else ("minilm", 128))
    assert stored["levels"] == SidConfig().levels
    if stage in ("sft", "rl"):  # what a model was trained with stays
        with recording(replace(config, mixture=MixtureConfig(["text"])), "mixture"):
            pass
        assert load(config.folder)["sid"] == stored


def test_settings_of_finished_stages_that_differ_are_named_in_one_line(config):
    assert other_settings(config, ("sft",)) is None  # there is no run yet
    make(config, "data")
    make(config, "sft")
    later = replace(config, data=DataConfig(max_history=5), sft=SftConfig(micro_batch=1), rl=RlConfig(beta=1))
    assert other_settings(config, ("rl",)) is None
    line = other_settings(later, ("rl",))
    assert "data.max_history 20 (here 5), " in line and f", sft.epochs 2 (here {SftConfig().epochs})" in line
    assert "\n" not in line
    assert "micro_batch" not in line and "beta" not in line  # it decides nothing; rl is not finished
    assert f"--config {config.folder}" in line
    assert "sft" not in other_settings(later, ("sft", "rl"))  # sft is asked itself
    assert other_settings(later, ("data", "sid", "sft", "rl")) is None
    many = replace(config, sft=SftConfig(batch_size=1, warmup=0.5, patience=9, smoothing=0.5, dropout=0.5, max_grad_norm=5))
    assert "and 3 more. --config" in other_settings(many, ("rl",))


@pytest.mark.parametrize(
    ("error", "partial", "kept"),
    [
        (ConfigError("refused"), False, False),
        (ConfigError("refused"), True, False),
        (ArtifactError("no input"), False, False),
        (TrainingError("diverged"), True, True),
        (KeyboardInterrupt(), True, True),
        (KeyboardInterrupt(), False, False),
        (RuntimeError("a mistake of ours"), True, True),
    ],
)
def test_a_stage_that_did_not_begin_changes_nothing(config, error, partial, kept):
    make(config, "data")
    before = (config.folder / RUN_FILE).read_bytes()
    with pytest.raises(type(error)), recording(replace(config, sft=SftConfig(epochs=9)), "sft"):
        assert load(config.folder)["sft"]["epochs"] == 9  # while it trains, for a process that is killed
        if partial:
            (config.folder / "sft.partial").mkdir()
        raise error
    assert ((config.folder / RUN_FILE).read_bytes() != before) == kept
    assert load(config.folder)["sft"]["epochs"] == (9 if kept else 2)


def test_what_another_command_has_recorded_meanwhile_stays(config):
    make(config, "data")
    with pytest.raises(ArtifactError), recording(replace(config, sft=SftConfig(epochs=9), rl=RlConfig(beta=9)), "sft"):
        make(replace(config, rl=RlConfig(beta=1)), "rl")
        raise ArtifactError("no input")
    values = load(config.folder)
    assert (values["sft"]["epochs"], values["rl"]["beta"]) == (2, 1)


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_is_spoilt_meanwhile_hides_no_error(config, removed):
    make(config, "data")
    with pytest.raises(ArtifactError, match="no input"), recording(config, "sft"):
        (config.folder / RUN_FILE).unlink() if removed else (config.folder / RUN_FILE).write_text("name: [")
        raise ArtifactError("no input")


def test_a_run_whose_settings_stay_is_not_written_to(config, monkeypatch):
    make(config, "data")
    monkeypatch.setattr(run_file, "_write", lambda *_: pytest.fail("wrote"))  # its disk may be read-only
    with recording(config, "data"):
        pass
    with pytest.raises(ConfigError, match="refused"), recording(config, "sft"):
        raise ConfigError("refused")


def test_a_run_whose_first_stage_fails_leaves_nothing(config, tmp_path):
    config = replace(config, out=str(tmp_path / "deep" / "run"))
    for left in ([], ["deep"]):
        with pytest.raises(ArtifactError), recording(config, "data"):
            raise ArtifactError("no disk")
        assert os.listdir(tmp_path) == left
        (tmp_path / "deep").mkdir(exist_ok=True)


DAMAGE = {
    "cut": (lambda text: text[: len(text) // 2].rpartition("\n")[0] + "\n", "its end is missing"),
    "empty": (lambda _: "", "its end is missing"),
    "no YAML": (lambda text: text.replace("sft:", "sft: ["), "not readable as YAML"),
    "a section that is none": (lambda text: text + "rl: 3\n...\n", "not readable as YAML|rl is a section, found 3"),
    "a list": (lambda _: "- 1\n...\n", "expected fields and sections such as `name: mine`, found a list"),
    "a list that was written by hand": (lambda _: "- 1\n", "expected fields and sections such as `name: mine`, found a list"),
    "a text": (lambda _: "ml-100k\n...\n", "expected fields and sections such as `name: mine`, found one text"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(config, damage):
    spoil, message = DAMAGE[damage]
    make(config, "data")
    path = config.folder / RUN_FILE
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    for use in (
        lambda: parse("run", ["--config", str(config.folder)]),
        lambda: make(config, "sft"),
        lambda: other_settings(config, ("sft",)),
    ):
        with pytest.raises(ConfigError, match=rf"run\.yaml: damaged \(.*({message}).*Delete the file and give .*--config"):
            use()
    assert not (config.folder / "sft").exists()
    path.unlink()
    make(config, "sft")
    assert load(config.folder)["sft"]["epochs"] == 2


def test_only_the_main_process_writes(config, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with recording(config, "data"):
        pass
    assert not config.folder.exists()


def test_commands_know_their_run(tmp_path, capsys):
    path, run = write_config(tmp_path), tmp_path / "run"
    assert main(["data", "prepare", "--config", str(path), "--data.max_history", "7", "--replace"]) == 0
    assert yaml.safe_load((run / RUN_FILE).read_text())["data"]["max_history"] == 7
    assert main(["sid", "--config", str(path)]) == 0  # the flag is forgotten, but the data is not touched
    assert "data.max_history 7 (here 6)" in capsys.readouterr().err
    assert main(["data", "prepare", "--config", str(path)]) == 2
    assert "data.max_history: 7 there, 6 now" in capsys.readouterr().err
    moved = shutil.move(run, tmp_path / "moved")
    assert main(["data", "prepare", "--config", str(moved)]) == 0
    assert main(["sid", f"--config={moved}"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("up to date") == 2 and not captured.err and not run.exists()
    assert main(["sid", "--config", str(moved), "--sid.codebook_size", "9"]) == 2  # a flag wins, and is asked about
    assert "sid.codebook_size: 8 there, 9 now" in capsys.readouterr().err
    assert load(moved)["sid"]["codebook_size"] == 8
    assert main(["sid", "--config", str(moved), "--sid.codebook_size", "9", "--replace"]) == 0
    assert load(moved)["sid"]["codebook_size"] == 9


def test_where_a_configuration_of_a_run_leads(config, tmp_path, monkeypatch):
    make(config, "data")
    monkeypatch.chdir(tmp_path)
    for folder in ("run", str(tmp_path / "run"), "./run/"):
        assert parse("run", ["--config", folder]).folder.resolve() == config.folder
    assert parse("run", ["--config", "run", "--out", "elsewhere"]).folder == Path("elsewhere")
    assert parse("run", ["--out=elsewhere", "--config=run"]).folder == Path("elsewhere")
    copied = parse("run", ["--config", "run", "--name", "again"])  # a new run with the same configuration
    assert copied.folder == Path("runs/again") and copied.sft == config.sft
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--config empty: this folder holds no run\.yaml"):
        parse("run", ["--config", "empty"])
    (tmp_path / "ml-100k").mkdir()  # a folder of that name hides no preset
    assert parse("run", ["--config", "ml-100k"]).name == "ml-100k"


def test_replace_needs_no_value_and_is_recorded_nowhere(config):
    flags = {(): False, ("--replace",): True, ("--replace=true",): True, ("--replace=false",): False}
    assert {flag: parse("run", list(flag)).replace for flag in flags} == flags
    make(replace(config, replace=True, eval=EvalConfig(num_beams=7)), "data")
    text = (config.folder / RUN_FILE).read_text()
    assert "\nreplace:" not in text and "\nout:" not in text and "num_beams: 7" in text
    names = ("data", "sid", "model", "prompts", "sft", "rl", "eval", "report", "baseline")
    assert config.section(*names) == replace(config, replace=True).section(*names)
    assert config.key_fields(*names) == replace(config, replace=True).key_fields(*names)


def test_each_stage_of_a_pipeline_is_recorded(config, monkeypatch):
    def refuse(_):
        raise ConfigError("asks")

    monkeypatch.setattr(pipeline, "STAGES", {"data": lambda _: [], "sid": refuse, "sft": lambda _: []})
    pipeline.run(config, ("data",))
    with pytest.raises(ConfigError, match="asks"):
        pipeline.run(replace(config, seed=9, data=DataConfig(max_history=3)), ("data", "sid", "sft"))
    values = load(config.folder)
    assert (values["data"]["max_history"], values["seed"]) == (3, 42)


def test_a_runs_configuration_is_read_without_a_command_line(config):
    with recording(config, "data"):
        pass
    assert run_file.configuration(config.folder) == config == parse("run", ["--config", str(config.folder)])
    path = config.folder / RUN_FILE
    path.write_text(path.read_text().replace("learning_rate: 1.0e-05", "learning_rat: 1.0e-05"))
    with pytest.raises(ConfigError, match=r"run.yaml: sft.learning_rat is no field .* Did you mean learning_rate\?"):
        run_file.configuration(config.folder)


@pytest.mark.parametrize(
    ("was", "by_hand", "message"),
    [
        ("kl_brake: auto", "kl_brake: 1e-1", None),  # which YAML reads as text
        ("kl_brake: auto", "kl_brake: soon", r"run.yaml: rl.kl_brake is .*soon.* Expected a number, or auto, or null"),
        ("seed: 42", "seed: many", r"run.yaml: seed is .*many.* Expected a whole number"),
        ("kl_brake: auto", "kl_brake: 100", r"run.yaml: rl.kl_brake is 100, but at rl.max_kl"),
    ],
)
def test_a_runs_configuration_that_was_written_by_hand(config, was, by_hand, message):
    with recording(config, "data"):
        pass
    path = config.folder / RUN_FILE
    text = path.read_text()
    assert text.count(was) == 1
    path.write_text(text.replace(was, by_hand))
    if message is None:
        assert run_file.configuration(config.folder).rl.kl_brake == 0.1
    else:
        with pytest.raises(ConfigError, match=message):
            run_file.configuration(config.folder)
