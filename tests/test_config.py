import dataclasses
import itertools
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from minionerec.cli import main, parse
from minionerec.config import (
    BaselineConfig,
    Config,
    DataConfig,
    EvalConfig,
    MixtureConfig,
    ModelConfig,
    ReportConfig,
    RlConfig,
    SftConfig,
    SftMixtureConfig,
    SidConfig,
)
from minionerec.config.fields import field_bounds
from minionerec.errors import ConfigError

pytestmark = pytest.mark.fast


def leaves(made, prefix=""):
    for field in dataclasses.fields(made):
        section = field.default_factory
        name = prefix + field.name
        yield from leaves(section, f"{name}.") if dataclasses.is_dataclass(section) else [name]


FIELDS, BOUNDS = list(leaves(Config)), field_bounds(Config)


def test_defaults_are_valid_and_the_folder_follows_the_name():
    assert Config().folder == Path("runs/experiment")
    assert Config(name="a").folder == Path("runs/a")
    assert Config(name="a", out="/x/b").folder == Path("/x/b")
    assert Config().section("sid", "eval") == {"sid": dataclasses.asdict(SidConfig()), "eval": dataclasses.asdict(EvalConfig())}


def test_keys_leave_out_what_only_decides_how_it_is_computed():
    made = Config()
    decisive, whole = made.key_fields("sft", "rl", "eval", "model"), made.section("sft", "rl", "eval", "model")
    left_out = {f"{name}.{field}" for name in whole for field in whole[name].keys() - decisive[name].keys()}
    assert {"sft.micro_batch", "sft.micro_tokens", "sft.gradient_checkpointing", "rl.micro_batch_prompts"} < left_out
    assert "eval.batch_size" in left_out and not left_out & {"eval.shard_size", "sft.batch_size", "sft.bf16", "rl.bf16"}
    assert all(decisive[name][field] == whole[name][field] for name in whole for field in decisive[name])
    other = dataclasses.replace(made, sft=SftConfig(micro_batch=1, micro_tokens=9, row_tokens=9, gradient_checkpointing=True))
    assert (
        other.key_fields("sft")
        == made.key_fields("sft")
        != dataclasses.replace(made, sft=SftConfig(epochs=1)).key_fields("sft")
    )


def test_defaults_are_not_shared():
    one, two = Config(), Config()
    one.sft.tasks.clear()
    one.data.max_history = 1
    assert len(two.sft.tasks) == 3 and two.data.max_history == 20


POSITIVE = {
    DataConfig: ("max_history",),
    SidConfig: ("max_text_tokens", "tfidf_dimensions", "levels", "iterations"),
    ModelConfig: ("hidden_size", "intermediate_size", "layers", "heads"),
    SftConfig: (
        *("history_stride", "batch_size", "micro_batch", "row_tokens", "epochs", "learning_rate"),
        *("evaluations", "patience"),
    ),
    RlConfig: (
        *("max_examples", "prompts_per_step", "micro_batch_prompts", "epochs", "learning_rate"),
        *("checkpoints", "valid_examples", "patience", "max_kl"),
    ),
    EvalConfig: ("num_beams", "batch_size", "resamples"),
    BaselineConfig: (
        *("max_history", "batch_size", "learning_rate", "epochs", "patience", "top", "hidden_size", "inner_size", "layers"),
        *("heads", "interests", "steps", "window", "horizontal_filters", "vertical_filters", "neighbours"),
    ),
    Config: ("threads",),
}


def section_of(made):
    """The beginning of a field's name; fields of `Config` itself are in no section."""
    section = made.__name__.removesuffix("Config").lower()
    return f"{section}." if section else ""


@pytest.mark.parametrize("made", POSITIVE)
def test_what_must_be_positive(made):
    for name, value in itertools.product(POSITIVE[made], [0, -1, float("nan"), float("inf")]):
        allowed = r"it must be (above 0|from [\d.,e-]+)[a-z\d.,e -]+\.$"
        with pytest.raises(ConfigError, match=rf"^{re.escape(section_of(made))}{name} is {value}; {allowed}"):
            made(**{name: value})


@pytest.mark.parametrize(
    ("made", "values", "message"),
    [
        (DataConfig, {"user_k": 2}, "data.user_k is 2;"),
        (DataConfig, {"start": "2016"}, "data.start is '2016'; expected a month"),
        (DataConfig, {"start": "2018-01", "end": "2017-01"}, "data.start 2018-01 is after data.end 2017-01"),
        (DataConfig, {"widen_below_items": 10}, "set data.start"),
        (DataConfig, {"split": "date", "valid_from": "2018-01"}, "data.valid_from (2018-01) and data.test_from (None)"),
        (DataConfig, {"parts": [9, 1, 0]}, "data.parts belongs to data.split chronological"),
        (DataConfig, {"split": "chronological", "parts": [1, 1]}, "expected three shares"),
        (RlConfig, {"kl_brake": 0}, "rl.kl_brake is 0; it must be above 0 and at most 1,000,000, or auto, or null."),
        (EvalConfig, {"num_beams": 10**11}, "eval.num_beams is 100000000000; it must be from 1 to 10,000."),
        (DataConfig, {"filters": "released", "user_k": 5, "item_k": 3}, "the released code's own item_k has no effect"),
        (DataConfig, {"filters": "released", "deduplicate": True}, "data.deduplicate is True"),
        (DataConfig, {"source": "amazon-2018"}, "needs data.category"),
        (DataConfig, {"source": "released", "path": "x", "user_k": 5}, "data.user_k is 5, but the splits"),
        (DataConfig, {"source": "csv"}, "data.source 'csv' needs data.path"),
        (SidConfig, {"levels": 27}, "sid.levels is 27;"),
        (SidConfig, {"codebook_size": 1}, "sid.codebook_size is 1;"),
        (ModelConfig, {"init": "from_pretrained"}, "model.path is not set"),
        (ModelConfig, {"init": "from_pretrained", "path": ""}, "model.path is empty"),
        (ModelConfig, {"hidden_size": 36, "heads": 4}, "model.hidden_size 36 does not split into 4 heads of even width"),
        (ModelConfig, {"path": "x"}, "model.path is x, but model.init is from_scratch"),
        (ModelConfig, {"dtype": "bfloat16"}, "model.dtype is bfloat16, but a model from scratch keeps float32 weights"),
        (ModelConfig, {"vocabulary": 299}, "model.vocabulary is 299;"),
        (SftConfig, {"tasks": []}, "sft.tasks is empty"),
        (SftConfig, {"weight_decay": -0.1}, "sft.weight_decay is -0.1; it must be from 0 to 10."),
        (SftConfig, {"max_grad_norm": -1}, "sft.max_grad_norm is -1; it must be from 0 to 1,000,000."),
        (RlConfig, {"max_grad_norm": float("inf")}, "rl.max_grad_norm is inf;"),
        (SftConfig, {"warmup": -0.1}, "sft.warmup is -0.1; it must be from 0 to below 1."),
        (SftConfig, {"warmup": 1.0}, "sft.warmup is 1.0;"),
        (SftConfig, {"lora_rank": 8}, "sft.lora_rank is set, but sft.train is full; it has an effect with lora only"),
        (SftConfig, {"train": "lora", "lora_rank": 0}, "sft.lora_rank is 0;"),
        (Config, {"sft": SftConfig(train="sid_rows")}, "random weights would stay as they are"),
        (SftConfig, {"smoothing": 1.0}, "sft.smoothing is 1.0;"),
        (SftConfig, {"frequency_power": -1}, "sft.frequency_power is -1;"),
        (SftConfig, {"level_weights": [1, -2]}, "sft.level_weights[1] is -2; it must be from 0 to 1,000,000."),
        (SftConfig, {"level_weights": [0, 0, 0]}, "sft.level_weights are all 0"),
        (
            SftConfig,
            {"tasks": ["sid_to_title"], "level_weights": [1, 2]},
            "sft.level_weights is [1, 2], but no task of sft.tasks",
        ),
        (SftConfig, {"tasks": ["sid_to_title"], "smoothing": 0.1}, "sft.smoothing is 0.1, but no task of sft.tasks"),
        (SftConfig, {"tasks": ["sid_to_title"], "normalise_over": "catalog"}, "sft.normalise_over is catalog, but no task"),
        (
            SftConfig,
            {"tasks": ["title_to_sid"], "frequency_power": 0.5},
            "sft.frequency_power is 0.5, but no task of sft.tasks",
        ),
        (Config, {"sft": SftConfig(["sid_to_title"])}, "sft.tasks is [sid_to_title]: none of them asks what comes after"),
        (SftConfig, {"tasks": ["title_to_sid"] * 2}, "sft.tasks names title_to_sid twice"),
        (SftMixtureConfig, {"weights": "fixed"}, "sft.mixture.weights is fixed, but sft.mixture.weight is not set"),
        (SftMixtureConfig, {"weights": "em", "weight": 0.5}, "sft.mixture.weight is 0.5, but sft.mixture.weights is em"),
        (
            SftMixtureConfig,
            {"weights": "fixed", "weight": 1.0},
            "sft.mixture.weight is 1.0; it must be above 0 and below 1, or null.",
        ),
        (
            Config,
            {"sft": SftConfig(["history_sid_to_sid"], mixture=SftMixtureConfig("em"), normalise_over="catalog")},
            "sft.mixture.weights is em, but mixture.components is empty",
        ),
        (
            SftConfig,
            {"mixture": SftMixtureConfig("em"), "normalise_over": "catalog"},
            "sft.mixture.weights is em, but sft.tasks names title_to_sid: the components know which item follows a history",
        ),
        (
            SftConfig,
            {
                "mixture": SftMixtureConfig("em"),
                "tasks": ["history_sid_to_sid", "history_sid_to_title"],
                "normalise_over": "catalog",
            },
            "sft.mixture.weights is em, but sft.tasks names history_sid_to_title",
        ),
        (
            SftConfig,
            {"mixture": SftMixtureConfig("em"), "tasks": ["history_sid_to_sid"]},
            "sft.mixture.weights is em, but sft.normalise_over is vocabulary",
        ),
        (
            SftConfig,
            {
                "mixture": SftMixtureConfig("fixed", 0.5),
                "tasks": ["history_title_to_sid"],
                "normalise_over": "catalog",
                "level_weights": [1, 2],
            },
            "sft.mixture.weights is fixed, but sft.level_weights is [1, 2]",
        ),
        (RlConfig, {"warmup": 20}, "rl.warmup is 20;"),
        (RlConfig, {"num_generations": 1}, "rl.num_generations is 1;"),
        (RlConfig, {"beta": -1e-3}, "rl.beta is -0.001;"),
        (RlConfig, {"beta": float("nan")}, "rl.beta is nan;"),
        (RlConfig, {"tasks": []}, "rl.tasks is empty"),
        (RlConfig, {"rewards": {"prefixx": 1.0}}, "rl.rewards names 'prefixx'; it must be one of rule, ranking,"),
        (RlConfig, {"rewards": {}}, "rl.rewards is {}; at least one reward needs a weight"),
        (RlConfig, {"rewards": {"rule": 0.0}}, "at least one reward needs a weight other than 0"),
        (RlConfig, {"rewards": {"rule": float("nan")}}, "rl.rewards.rule is nan;"),
        (SftConfig, {"best_metric": "NDCG"}, "sft.best_metric is 'NDCG'; it must be one of loss, HR@1,"),
        (SftConfig, {"valid_examples": 9}, "sft.valid_examples is set, but sft.best_metric is loss"),
        (RlConfig, {"best_metric": "NDCG@7"}, "rl.best_metric is 'NDCG@7'; it must be one of HR@1,"),
        (RlConfig, {"evaluations": -1}, "rl.evaluations is -1;"),
        (RlConfig, {"tasks": ["history_sid_to_sid", "sid_to_title"]}, "rl.tasks holds sid_to_title"),
        (ReportConfig, {"examples": -1}, "report.examples is -1;"),
        (BaselineConfig, {"protocol": "recbole"}, "baseline.protocol 'recbole' needs baseline.sequences"),
        (BaselineConfig, {"sequences": "x"}, "baseline.sequences is set, but baseline.protocol is dataset"),
        (BaselineConfig, {"dropout": 1.0}, "baseline.dropout is 1.0; it must be from 0 to below 1, or null."),
        (BaselineConfig, {"alpha": 1.1}, "baseline.alpha is 1.1; it must be from 0 to 1, or null."),
        (BaselineConfig, {"shrinkage": -1}, "baseline.shrinkage is -1"),
        (BaselineConfig, {"components": ["sequential"]}, "components names sequential, but baseline.sequential is null"),
        (BaselineConfig, {"sequential": "sasrec"}, "baseline.components does not name sequential, so nothing would read it"),
        (
            BaselineConfig,
            {"components": ["sequential"], "sequential": "sasrec", "protocol": "recbole", "sequences": "x"},
            "sasrec, which is read as it was trained on a run's own splits, but baseline.protocol is recbole",
        ),
        (MixtureConfig, {"components": ["sequential"]}, "one that the run has trained, such as --mixture.sequential sasrec"),
        (
            MixtureConfig,
            {"components": ["markov"], "sequential": "gru4rec"},
            "mixture.sequential is gru4rec, but mixture.components does not name sequential, so nothing would read it. Add",
        ),
        *(
            (MixtureConfig, {"components": ["sequential"], "sequential": name}, f"mixture.sequential is {name}, which {reason}")
            for name, reason in (("markov", "only counts"), ("rpg", "knows items by their"), ("liger", "knows items by their"))
        ),
        (Config, {"seed": -1}, "seed is -1; it must be from 0 to 4,294,967,295."),
        (Config, {"seed": 2**32}, "seed is 4294967296;"),
        (Config, {"name": "../../x"}, "name is '../../x'; it names files and folders, so it must have no /"),
        (Config, {"name": "\u202e"}, "name holds '\\u202e', which is invisible or turns the direction"),
        (Config, {"name": ""}, "name is empty"),
        (Config, {"name": "a\0b"}, "name: character 2 of 'a\\x00b' is a control character"),
        (Config, {"out": "a\0b"}, "out: character 2 of 'a\\x00b' is a control character"),
        (Config, {"out": "x" * 300}, "(300 characters) is one part of a path; file systems allow 255 bytes"),
        (Config, {"out": "~nobody-here/x"}, "this machine knows no home folder ~nobody-here"),
        (DataConfig, {"category": "../../x"}, "data.category is '../../x'"),
        (DataConfig, {"max_history": 10**12}, "data.max_history is 1000000000000; it must be from 1 to 100,000."),
        (ModelConfig, {"hidden_size": 2**40}, "model.hidden_size is 1099511627776; it must be from 1 to 32,768."),
        (ModelConfig, {"layers": 10**6}, "model.layers is 1000000; it must be from 1 to 512."),
        (ModelConfig, {"vocabulary": 10**12}, "model.vocabulary is 1000000000000; it must be from 300 to 1,000,000."),
        (SftConfig, {"epochs": 1e-9}, "sft.epochs is 1e-09; it must be from 0.001 to 10,000."),
        (SftConfig, {"frequency_power": 1000}, "sft.frequency_power is 1000; it must be from 0 to 4."),
        (RlConfig, {"learning_rate": 1e10}, "rl.learning_rate is 10000000000.0; it must be from 1e-12 to 1."),
        (RlConfig, {"rewards": {"rule": 1e300}}, "rl.rewards.rule is 1e+300; it must be from -1,000 to 1,000."),
        (RlConfig, {"beta": 1e30}, "rl.beta is 1e+30; it must be from 0 to 1,000."),
        (RlConfig, {"tasks": ["title_to_sid"] * 2}, "rl.tasks names title_to_sid twice"),
        (EvalConfig, {"resamples": 1}, "eval.resamples is 1; it must be from 40 to 100,000."),
        (Config, {"sft": SftConfig(history_stride=21)}, "sft.history_stride 21 is longer than data.max_history 20"),
    ],
)
def test_refused_values(made, values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        made(**values)


@pytest.mark.parametrize(
    ("made", "values"),
    [
        (Config, {"seed": 0}),
        (Config, {"seed": 2**32 - 1}),
        (Config, {"sft": SftConfig(history_stride=20)}),
        (SidConfig, {"levels": 26, "codebook_size": 2}),
        (RlConfig, {"max_examples": None, "beta": 0, "warmup": 0, "max_grad_norm": 0}),
        (ModelConfig, {"vocabulary": 300, "hidden_size": 8, "heads": 4}),
        (ReportConfig, {"examples": 0}),
    ],
)
def test_accepted_limits(made, values):
    assert made(**values)


@pytest.fixture(scope="module")
def help_blocks():
    """What the help says of each option."""
    with redirect_stdout(StringIO()) as printed:
        assert main(["run", "--help-all"]) == 0
    options = printed.getvalue().split("\noptions:")[1]
    blocks = re.findall(r"^  --\S.*?(?=^  --|^$|\Z)", options, re.DOTALL | re.MULTILINE)
    return {re.split("[ ,]", block.removeprefix("  --"), maxsplit=1)[0]: block for block in blocks}


@pytest.mark.parametrize("field", FIELDS)
def test_help_explains_every_field(help_blocks, field):
    assert field in help_blocks, f"--{field} is not in the help text"
    block = help_blocks[field]
    words = block.split("(type:")[0].split()
    prose = [word for word in words if not re.match(r"--|[\[{]|[A-Z_]+$|ITEM", word)]
    assert len(prose) >= 3, block
    if field in BOUNDS:
        assert f"; {BOUNDS[field].words})" in block or f"({BOUNDS[field].words})" in block
    assert "default:" in block


def test_a_preset_may_be_named_like_its_file():
    assert parse("run", ["--config", "ml-100k.yaml"]) == parse("run", ["--config", "ml-100k"])
