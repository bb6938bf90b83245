"""The command line as a user meets it: a mistake ends in one message and status 2, never in a traceback."""

import dataclasses
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import polars as pl
import pytest

from minionerec import __version__, pipeline
from minionerec.artifacts import Manifest
from minionerec.cli import COMMANDS, main, parse
from minionerec.config import Config, ModelConfig
from minionerec.config.fields import field_types
from minionerec.errors import ConfigError
from minionerec.model import checkpoint
from tests.launch import ENVIRONMENT, ROOT
from tests.small import write_config

GLOBAL = {"name", "out", "seed", "threads", "engine", "engine_workers", "replace", "wait"}  # fields of every command


@pytest.fixture
def fails(capsys):
    """Run a command line that must fail with status 2; its message on one line."""

    def run(*arguments) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err and captured.out == ""
        return " ".join(captured.err.split())

    return run


@pytest.fixture
def file(tmp_path):
    """Write a configuration file; its path."""

    def write(content: str | bytes):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_shows_the_sections_of_the_command(command, flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*command.split(), flag]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: minionerec {command} ") and len(printed.splitlines()) <= 124
    shown = {line.split()[0].partition(".")[0].removeprefix("--") for line in printed.splitlines() if line.startswith("  --")}
    assert set(COMMANDS[command].sections) == shown & {field.name for field in dataclasses.fields(Config)} - GLOBAL
    assert ("--help-all" in printed) == COMMANDS[command].takes_config
    assert ("--replace" in printed) == (COMMANDS[command].takes_config or "--replace" in COMMANDS[command].options)
    assert all(len(line) <= 100 for line in printed.splitlines())


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.takes_config])
def test_help_all_shows_every_field(command, capsys):
    assert main([*command.split(), "--help-all"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  --{name} " in printed for name, kind in field_types(Config).items() if not dataclasses.is_dataclass(kind))


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (["help"], "usage: minionerec COMMAND"),
        (["help", "sft"], "usage: minionerec sft "),
        (["help", "data", "prepare"], "usage: minionerec data prepare "),
        (["data"], "usage: minionerec COMMAND"),
        (["data", "help"], "usage: minionerec COMMAND"),
        (["help", "data"], "usage: minionerec COMMAND"),
        (["sft", "--config", "ml-100k", "--help"], "usage: minionerec sft "),
    ],
)
def test_other_ways_to_ask_for_help(arguments, beginning, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(beginning)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_overview(arguments, capsys):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"minionerec {__version__}\n"


def test_arguments_come_from_the_process_by_default(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["minionerec", "--version"])
    assert main() == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "near"), [("rum", "run"), ("evla", "eval"), ("reprot", "report"), ("sid inspct", "sid inspect")]
)
def test_unknown_command(fails, command, near):
    assert fails(*command.split()).endswith(
        f"unknown command {command}. Did you mean {near}? minionerec --help lists all commands."
    )


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("sft.learning_rte", "Did you mean sft.learning_rate?"),
        ("sft.eopchs", "Did you mean sft.epochs?"),
        ("epochs", "Did you mean sft.epochs or rl.epochs or baseline.epochs or yes_no.epochs or lego.epochs?"),
        ("model.epochs", "Did you mean sft.epochs or rl.epochs or baseline.epochs or yes_no.epochs or lego.epochs?"),
        ("codebook_size", "Did you mean sid.codebook_size?"),
        ("data.sid.levels", "Did you mean sid.levels?"),
        ("sft.epochs.value", "Did you mean sft.epochs?"),
        ("zzz", "minionerec run --help-all shows all fields."),
    ],
)
def test_unknown_and_misplaced_fields(fails, file, field, hint):
    assert f"ConfigError: command line: unknown field {field}. {hint}" in fails("run", f"--{field}", "3")
    assert f"unknown field {field}. {hint}" in fails("run", f"--{field}=3")
    *sections, leaf = field.split(".")
    nested = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections)) + f"{'  ' * len(sections)}{leaf}: 3\n"
    path = file(nested)
    assert f"ConfigError: {path}: unknown field {field}. {hint}" in fails("run", "--config", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "x"], "command line: seed is 'x'. Expected a whole number."),
        (["--seed=-1"], "seed is -1; it must be from 0 to 4,294,967,295."),
        (["--seed", "3.0"], "command line: seed is 3.0. Expected a whole number."),
        (["--seed", "true"], "command line: seed is true. Expected a whole number."),
        (["--threads", "1e3"], "command line: threads is '1e3'. Expected a whole number."),
        (["--name", ""], "name is empty; it names files and folders."),
        (["--name"], "--name needs a value: text."),
        (["--replace", "maybe"], "minionerec run takes no argument 'maybe'."),
        (["--replace", "true", "--wait", "false", "no"], "minionerec run takes no argument 'no'."),
        (["--replace=maybe"], "command line: replace is 'maybe'. Expected true or false."),
        (["--model.layers", "null"], "command line: model.layers is null. Expected a whole number."),
        (["--sid.levels", "2.5"], "command line: sid.levels is 2.5. Expected a whole number."),
        (["--rl.max_examples", "x"], "command line: rl.max_examples is 'x'. Expected a whole number, or null."),
        (["--sft.epochs", "three"], "command line: sft.epochs is 'three'. Expected a number."),
        (["--sft.epochs", "0"], "sft.epochs is 0"),
        (["--sft.epochs"], "--sft.epochs needs a value: a number."),
        (["--sft.epochs", "--seed", "3"], "--sft.epochs needs a value: a number."),
        (["--sft.learning_rate", "1e"], "command line: sft.learning_rate is '1e'. Expected a number."),
        (["--sft.bf16", "maybe"], "command line: sft.bf16 is 'maybe'. Expected true or false."),
        (["--data.title_rules", "x"], "command line: data.title_rules is 'x'. Expected true or false, or null."),
        (["--data.source", "kaggle"], "data.source is 'kaggle'. Expected one of ml-100k, ml-1m, amazon-2018,"),
        (["--model.dtype", "float16"], "model.dtype is 'float16'. Did you mean bfloat16? Expected one of float32, bfloat16."),
        (["--eval.normalise_over", "catalogue"], "Did you mean catalog? Expected one of vocabulary, catalog."),
        (["--baseline.model", "sasrek"], "baseline.model is 'sasrek'. Did you mean sasrec? Expected one of popularity,"),
        (["--sid.collaborative_model", "sasrek"], "'sasrek'. Did you mean sasrec? Expected one of gru4rec,"),
        (["--eval.assistant", "tiger"], "eval.assistant is 'tiger'. Expected one of gru4rec,"),  # it leaves no vectors
        (["--eval.title_assistant", "markov"], "eval.title_assistant is 'markov'. Expected one of popularity, gru4rec,"),
        (["--sft.tasks", "[title_to_sad]"], "sft.tasks is ['title_to_sad']. Did you mean title_to_sid? Expected a list,"),
        (["--sft.tasks", "title_to_sid"], "sft.tasks is 'title_to_sid'. Did you mean [title_to_sid]? Expected a list,"),
        (["--sft.tasks+", "title_to_sad"], "sft.tasks is ['title_to_sad']. Did you mean title_to_sid?"),
        (["--sft.report_to", "tensorbord"], "sft.report_to is 'tensorbord'. Did you mean tensorboard?"),
        (["--sft.level_weights", "3"], "Did you mean [3]? Expected a list of numbers, e.g. [1, 0.5], or null."),
        (["--sft.level_weights", "[a]"], "sft.level_weights is ['a']. Expected a list of numbers, e.g. [1, 0.5], or null."),
        (
            ["--sft.lora_targets", "q"],
            "'q'. Did you mean [q]? Expected a list of texts, e.g. [a, b], or null.",
        ),
        (["--data.parts", "[8,1,x]"], "data.parts is [8, 1, 'x']. Expected a list of whole numbers, e.g. [3, 5]."),
        (
            ["--sid.rqvae.hidden", "5"],
            "is 5. Did you mean [5]? Expected a list of whole numbers, e.g. [3, 5].",
        ),
        (["--rl.rewards", "3"], "rl.rewards is 3. Expected names with a number each, e.g. {rule: 1}; names are rule, ranking,"),
        (["--rl.rewards", "{ranking: x}"], "rl.rewards is {'ranking': 'x'}. Expected names with a number each,"),
        (["--rl.rewards", "{rank: 1}"], "rl.rewards names 'rank'; it must be one of rule, ranking,"),
        (["--rl.rewards.ranking", "x"], "rl.rewards.ranking is 'x'. Expected a number."),
        (["--sft.task_shares", "{x: 1}"], "sft.task_shares names x, which is not among sft.tasks: history_sid_to_sid,"),
        (["--sft", "3"], "command line: sft is a section; expected its fields, such as sft.tasks, found 3."),
        (["--sft", '{"epochz": 3}'], "command line: unknown field sft.epochz. Did you mean sft.epochs?"),
        (["--sft", '{"epochs": "x"}'], "command line: sft.epochs is 'x'. Expected a number."),
        (["surplus"], "minionerec run takes no argument 'surplus'. Fields are set by --section.field VALUE."),
        (["ml-100k"], "minionerec run takes no argument 'ml-100k'. Did you mean --config ml-100k?"),
        (["sft.epochs", "3"], "minionerec run takes no argument 'sft.epochs'. Did you mean --sft.epochs VALUE?"),
        (["-x"], "minionerec run has no option -x."),
        (["--print_config=x"], "--print_config takes no value; found 'x'."),
        (["--dry-run"], "command line: unknown field dry-run."),
        (["--config"], "--config needs a value: a YAML file, or a preset (minionerec presets lists them)."),
        (["--config", ""], "--config needs a value"),
        (["--config="], "--config needs a value"),
        (["--config", "ml-100"], "--config ml-100: no such file, run folder or preset. Did you mean ml-100k?"),
        (["--config", "/nowhere/mine.yaml"], "--config /nowhere/mine.yaml: no such file"),
        (["--config", "--seed", "3"], "--config --seed: no such file"),
        (["--config", "."], "--config .: this folder holds no run.yaml"),
    ],
)
def test_mistakes_on_the_command_line(fails, arguments, message):
    error = fails("run", *arguments)
    assert error.startswith("ConfigError: ") and message in error
    assert not re.search(r"typing|Parser key|<class|Union|Namespace|NoneType", error)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sft --dry-run=yes", "--dry-run takes no value; found 'yes'."),
        ("sft --dry-run --devices", "--devices needs a value."),
        ("sft --dry-run --devices 1.5", "--devices is 1.5. Expected a whole number."),
        ("sft --dry-run --devices 0", "--devices is 0; it must be from 1 to 100,000."),
        ("rl --dry-run --gpu-memory big", "--gpu-memory is 'big'. Expected a number."),
        ("rl --gpu-memory 80", "--gpu-memory belongs to --dry-run: minionerec rl --dry-run --gpu-memory 80"),
        ("sft --dry-rum", "minionerec sft has no option --dry-rum. Did you mean --dry-run?"),
        (
            "data export --layout recbool --to x",
            "'recbool'. Did you mean recbole? Expected one of released, recbole.",
        ),
        ("data export --layout recbole", "minionerec data export needs --to FOLDER: the folder to write to."),
        ("sid append", "minionerec sid append needs --base RUN: folder of the run whose semantic IDs are extended."),
        ("baseline table", "minionerec baseline table needs a name: beauty, lastfm, or the folders of runs"),
        ("baseline table beauty --run x", "minionerec baseline table has no option --run. Did you mean --runs?"),
        ("baseline table a b --on sids", "--on is 'sids'. Did you mean sid? Expected one of item, sid."),
        ("pairs table a b --htm x", "minionerec pairs table has no option --htm. Did you mean --html?"),
        ("levels --path", "--path needs a value."),
        ("levels", "minionerec levels needs --path FILE: predictions.jsonl of an eval stage"),
        ("levels --path x --cutoffs 1 a", "--cutoffs is 'a'. Expected a whole number."),
        ("levels --path x --config ml-100k", "minionerec levels has no option --config."),
        ("gap --out x --resamples few", "--resamples is 'few'. Expected a whole number."),
        ("gap extra --out x", "minionerec gap takes no argument 'extra'."),
        ("completion", "minionerec completion needs a shell: the shell that you use."),
        ("completion fish", "shell is 'fish'. Expected one of bash, zsh."),
        ("presets all", "minionerec presets takes no argument 'all'."),
        ("ml-100k", "ml-100k is a configuration, not a command. Did you mean minionerec run --config ml-100k?"),
        ("--config ml-100k", "name a command before --config, for example: minionerec run --config ml-100k"),
        ("recommend --run x --allow " + "i" * 4001, "--allow has 4,001 characters; 4,000 at most. Write the ids into a file"),
        ("data --seed 3", "minionerec data needs to know what to do, for example: minionerec data prepare."),
    ],
)
def test_mistakes_in_the_options_of_a_command(fails, command, message):
    error = fails(*command.split())
    assert error.startswith("ConfigError: ") and message in error
    assert not re.search(r"typing|Parser key|<class|Union|Namespace|NoneType", error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sft: 3\n", "sft is a section; expected its fields, such as sft.tasks, found 3."),
        ("sft:\n", "sft is a section; expected its fields, such as sft.tasks, found None."),
        ("eval: [1, 2]\n", "eval is a section; expected its fields, such as eval.split, found [1, 2]."),
        ("data: other.yaml\n", "data is a section; expected its fields, such as data.source, found 'other.yaml'."),
        ("- seed\n", "expected fields and sections such as `name: mine`, found a list."),
        ("seed\n", "expected fields and sections such as `name: mine`, found one text."),
        ("", "expected fields and sections such as `name: mine`, found nothing."),
        ("sft: [1\n", "not readable as YAML"),
        ("sft:\n\tepochs: 3\n", "not readable as YAML"),
        (b"name: caf\xe9\n", "not readable as YAML ('utf-8' codec can't decode byte 0xe9"),
        ("!!python/object/apply:os.getcwd []\n", "not readable as YAML"),
        ("1: 2\n", "unknown field 1."),
        ("config: other.yaml\n", "unknown field config."),
    ],
)
def test_files_that_are_no_configuration(fails, file, content, message):
    path = file(content)
    assert f"ConfigError: {path}: {message}" in fails("run", "--config", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: -1\n", "seed is -1"),
        ("sft:\n  epochs: three\n", "sft.epochs"),
        ("sft:\n  epochs: .nan\n", "sft.epochs is nan"),
        ("sft:\n  batch_size: -3\n", "sft.batch_size is -3"),
        ("rl:\n  tasks: [sid_to_title]\n", "rl.tasks holds sid_to_title"),
        ("data:\n  max_history: 3\nsft:\n  history_stride: 4\n", "sft.history_stride 4 is longer than data.max_history 3"),
    ],
)
def test_bad_values_in_a_file(fails, file, content, message):
    error = fails("run", "--config", file(content))
    assert error.startswith("ConfigError: ") and message in error


def test_command_line_over_file_over_defaults_in_any_order(file):
    path = str(file("seed: 7\nthreads: 1\nsft:\n  epochs: 2\n  learning_rate: 1e-4\n"))
    options = [["--config", path], ["--seed", "3"], ["--sft.epochs=5"]]
    for order in (options, options[::-1], [options[1], options[0], options[2]]):
        config = parse("run", [word for option in order for word in option])
        assert (config.seed, config.sft.epochs) == (3, 5)  # command line
        assert (config.threads, config.sft.learning_rate) == (1, 1e-4)  # file
        assert config.sft.batch_size == Config().sft.batch_size  # default
    assert parse("run", ["--seed=3", f"--config={path}"]).seed == 3


def test_switches_may_have_a_value():
    for words, expected in (
        (["--replace"], (True, False)),
        (["--replace", "true", "--wait"], (True, True)),
        (["--replace", "false", "--wait", "true", "--seed", "3"], (False, True)),
        (["--replace=false"], (False, False)),
    ):
        config = parse("sid", words)
        assert (config.replace, config.wait) == expected


def test_lists_and_nulls(file):
    assert parse("sft", ["--sft.tasks", "[title_to_sid]"]).sft.tasks == ["title_to_sid"]
    assert parse("sft", ["--sft.tasks=[title_to_sid, sid_to_title]"]).sft.tasks == ["title_to_sid", "sid_to_title"]
    path = str(file("sft:\n  tasks:\n  - title_to_sid\nrl:\n  max_examples: null\nsid: {}\n"))
    config = parse("sft", ["--config", path, "--sft.tasks+", "sid_to_title"])
    assert config.sft.tasks == ["title_to_sid", "sid_to_title"] and config.rl.max_examples is None
    assert parse("sft", ["--rl.max_examples", "null"]).rl.max_examples is None


def test_interrupted(monkeypatch, capsys, tmp_path):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setitem(pipeline.STAGES, "data", interrupt)
    assert main(["run", "--out", str(tmp_path / "run")]) == 130
    assert "Run the same command again to resume." in capsys.readouterr().err


def test_permission_denied(monkeypatch, fails, tmp_path):
    monkeypatch.chdir(tmp_path)

    def refuse(config):
        raise PermissionError(13, "Permission denied", "/somewhere/locked")

    monkeypatch.setitem(pipeline.STAGES, "data", refuse)
    error = fails("data", "prepare")
    assert error.startswith("ArtifactError: /somewhere/locked: permission denied. Allow it (chmod, chown).")
    assert "If it is to be written, you can also choose another folder with --out DIR." in error


def test_messages_are_printed_as_they_are(fails):
    assert "--config [bold]x[/]: no such file" in fails("run", "--config", "[bold]x[/]")


@pytest.fixture
def small(tmp_path):
    """The small experiment; its configuration's path and the folder of its csv files."""
    return write_config(tmp_path), tmp_path / "raw"


def replace(path, old: str, new: str | bytes):
    new = new if isinstance(new, bytes) else new.encode()
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new, 1))


def test_an_item_without_title(fails, small, capsys):
    path, raw = small
    replace(raw / "items.csv", "i2,old lamp number 2", "i2,")
    error = fails("data", "prepare", "--config", path)
    assert error.startswith(f"DataError: {raw / 'items.csv'}, row 4: item 'i2' has no title.")
    assert "--data.missing_text drop" in error
    assert not (path.parent / "run").exists()
    assert main(["data", "prepare", "--config", str(path), "--data.missing_text", "drop"]) == 0
    assert Manifest.load(path.parent / "run/data").metrics["dropped_items_without_text"] == 1
    assert "items 47" in capsys.readouterr().out


def test_a_file_that_is_not_utf8(fails, small):
    path, raw = small
    replace(raw / "items.csv", "old lamp", b"l\xe9on lamp")
    error = fails("data", "prepare", "--config", path)
    assert re.match(rf"DataError: {re.escape(str(raw / 'items.csv'))}, row 4: byte 0xe9 .*Save the file as UTF-8\.", error)


def test_short_users_and_repeated_rows_are_counted(small, capsys):
    path, raw = small
    with (raw / "interactions.csv").open("a") as stream:
        stream.write("short,i1,5\nshort,i2,6\n" + "twice,i1,5\n" * 3 + "twice,i2,6\ntwice,i3,7\n")
    assert main(["data", "prepare", "--config", str(path)]) == 0
    assert "data " in (printed := capsys.readouterr().out) and "users 41" in printed
    metrics = Manifest.load(path.parent / "run/data").metrics
    assert (metrics["users"], metrics["dropped_short_users"], metrics["dropped_duplicates"]) == (41, 1, 2)
    assert metrics["dropped_short_user_interactions"] == 2
    catalog = pl.read_parquet(path.parent / "run/data/catalog.parquet")
    assert len(catalog) == metrics["items"] == 48


@pytest.mark.parametrize("place", ["file", "file/below/it"])
def test_out_that_cannot_be_a_folder(fails, small, place):
    path, raw = small
    (raw / "file").write_text("mine")
    error = fails("data", "prepare", "--config", path, "--out", raw / place)
    assert error.startswith(f"ArtifactError: {raw / place}/run.yaml: cannot be written")
    assert error.endswith("Choose another folder with --out DIR.")
    assert (raw / "file").read_text() == "mine"


def test_a_catalog_that_has_more_items_than_sids(fails, small, capsys):
    path, _ = small
    assert main(["data", "prepare", "--config", str(path)]) == 0
    capsys.readouterr()
    error = fails("sid", "--config", path, "--sid.levels", "1")
    assert error.startswith("CatalogError: 48 items, but codebooks of 8 make only 8 semantic IDs.")
    assert sorted(folder.name for folder in (path.parent / "run").iterdir()) == ["data", "run.yaml"]


def test_floors_are_evaluated_without_a_model_and_damage_is_named(fails, small, capsys):
    path, _ = small
    for command in ("data prepare", "sid", "eval"):
        assert main([*command.split(), "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "popularity" in printed and "HR@10" in printed and "sft" not in printed
    run = path.parent / "run"
    (run / "data/train.parquet").write_bytes(b"cut")
    assert f"{run / 'data/train.parquet'}: 3 bytes, the manifest says" in fails("sid", "--config", path)
    assert main(["data", "prepare", "--config", str(path)]) == 0  # made anew, and the same, so nothing else is stale
    assert main(["sid", "--config", str(path)]) == 0
    assert "(up to date)" in capsys.readouterr().out.splitlines()[-1]


def test_the_pipeline_loads_where_there_is_no_module_resource():
    """As on Windows, which then has no peak memory to show."""
    script = "import psutil, sys; sys.modules['resource'] = None; sys.platform = 'win32'; from minionerec import pipeline; "
    done = subprocess.run(
        [sys.executable, "-c", script + "print(repr(pipeline._peak_memory()))"],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "''\n", done.stderr


def test_help_does_not_wait_for_torch():
    lines = [["sft", "--help"], ["run", "--config", "ml-100k", "--print_config"], ["presets"]]
    script = f"import sys; from minionerec.cli import main; [main(line) for line in {lines}]; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("arguments", ["sft --help-all", "presets"])
def test_a_closed_pipe_is_no_error(arguments):
    command = f"{sys.executable} -m minionerec {arguments} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.stdout in ("0\n", "141\n")


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """What bash offers for the last word of a command line."""
    path = tmp_path_factory.mktemp("completion") / "minionerec"
    with redirect_stdout(StringIO()) as printed:
        assert main(["completion", "bash"]) == 0
    path.write_text(printed.getvalue())

    def complete(line: str) -> list[str]:
        words = line.split() + [""] * line.endswith(" ")
        script = (
            f"source {path}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; "
            f'_shtab_minionerec minionerec {words[-1]!r}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", script], env={"PATH": "/bin:/usr/bin"}, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("minionerec s", ["sid", "sft"]),
        ("minionerec data ", ["prepare", "describe", "export", "list", "get"]),
        ("minionerec sid a", ["append"]),
        ("minionerec sft --sft.ep", ["--sft.epochs"]),
        ("minionerec sft --dry", ["--dry-run"]),
        ("minionerec run --rl.ep", ["--rl.epochs"]),
        ("minionerec sft --config ml-", ["ml-100k", "ml-100k-qwen2.5-1.5b"]),
        ("minionerec eval --eval.normalise_over ", ["vocabulary", "catalog"]),
        ("minionerec completion ", ["bash", "zsh"]),
    ],
)
def test_bash_completes(completion, line, words):
    assert sorted(set(words) - set(completion(line))) == []
    if not line.endswith(" "):
        assert all(word.startswith(line.split()[-1]) for word in completion(line))


def test_zsh_has_a_script_too(capsys):
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef minionerec") and "--sft.epochs" in printed and "_minionerec_configs" in printed


def test_the_hub_is_asked_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # restores the variable after the test
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def answer(request, timeout):
        asked.append(request.full_url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", answer)
    pipeline.use_cache_without_hub(Config())
    pipeline.use_cache_without_hub(Config(model=ModelConfig(init="from_pretrained", path=str(tmp_path))))
    assert asked == [] and not constants.HF_HUB_OFFLINE  # nothing comes from the hub
    hub = Config(model=ModelConfig(init="from_pretrained", path="Qwen/Qwen2.5-0.5B"))
    pipeline.use_cache_without_hub(hub)
    pipeline.use_cache_without_hub(hub)
    assert len(asked) == 1 and constants.HF_HUB_OFFLINE
    with pytest.raises(ConfigError, match=r"Qwen/Qwen2.5-0.5B: not a loadable causal LM .* or a hub name that can be reached"):
        checkpoint.load("Qwen/Qwen2.5-0.5B")


@pytest.mark.parametrize("command", [["run"], ["sft"], ["sft", "--dry-run"]])
@pytest.mark.parametrize("path", ["nobody/nothing", "no/such/folder"])
def test_a_model_that_is_nowhere_is_refused_before_any_stage(fails, tmp_path, monkeypatch, command, path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = ["--model.init", "from_pretrained", "--model.path", path]
    error = fails(*command, "--out", str(tmp_path / "run"), *model)
    assert f"model.path {path}: there is no such folder, the hub cannot be reached" in error
    assert not (tmp_path / "run").exists()


def test_a_finished_model_needs_no_base_model(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/manifest.json").write_text("{}")
    monkeypatch.setitem(pipeline.STAGES, "sft", lambda config: iter(()))
    pipeline.run(Config(out=str(tmp_path), model=ModelConfig(init="from_pretrained", path="nobody/nothing")), ("sft",))
