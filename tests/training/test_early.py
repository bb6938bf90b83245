"""What a later stage would refuse is refused before the stages before it take their time."""

import dataclasses
import itertools
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import polars as pl
import pytest

from minionerec import pipeline
from minionerec.artifacts import MANIFEST, Manifest, Recipe
from minionerec.config import (
    NAMING,
    BaselineConfig,
    Config,
    EvalConfig,
    MixtureConfig,
    ModelConfig,
    PromptsConfig,
    RlConfig,
    RqVaeConfig,
    SftConfig,
    SftMixtureConfig,
    SidConfig,
)
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.rl.early import check_early, check_group
from minionerec.sft.early import check_early as check_early_of_sft
from minionerec.sid import sentence_encoders
from minionerec.training import early, machine
from tests.small import random_dataset, reseal

pytestmark = pytest.mark.fast

STAGES = ("data", "sid", "sft", "rl", "eval", "report")
DATASET, INDEX = random_dataset()


@pytest.fixture
def libraries(monkeypatch):
    """Stand for transformers, with one tracker, and for torch, without a GPU: their imports take seconds."""
    library = SimpleNamespace(get_available_reporting_integrations=lambda: ["trackio"])
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(integrations=library))
    monkeypatch.setitem(sys.modules, "transformers.integrations", library)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder in which no stage may begin."""
    for stage in STAGES:
        monkeypatch.setitem(pipeline.STAGES, stage, lambda config: pytest.fail("a stage began"))
    return tmp_path / "run"


def with_data(folder, sids=True):
    """Leave what the stages data and sid leave."""
    for stage, artefact in (("data", DATASET), ("sid", INDEX))[: 1 + sids]:
        (folder / stage).mkdir(parents=True)
        artefact.save(folder / stage)
        (folder / stage / MANIFEST).write_text("{}")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"rl": RlConfig(best_metric="HR@50"), "eval": EvalConfig(num_beams=10)},
            "rl.best_metric is HR@50",
        ),
        (
            {"sft": SftConfig(best_metric="NDCG@20"), "eval": EvalConfig(num_beams=10)},
            "sft.best_metric is NDCG@20",
        ),
        ({"rl": RlConfig(report_to=["abacus"])}, "rl.report_to names abacus, which transformers does not know"),
        ({"sft": SftConfig(report_to=["wandb"])}, "sft.report_to names wandb, which transformers does not know"),
        (
            {"rl": RlConfig(rewards={"collaborative": 1.0}, collaborative_model="popularity")},
            "popularity only counts",
        ),
        (
            {"rl": RlConfig(rewards={"collaborative": 1.0}, collaborative_model="tiger")},
            "rl.collaborative_model. tiger writes codes and has no vectors",
        ),
        ({"sid": SidConfig(collaborative_model="lazy")}, "sid.collaborative_model lazy writes codes"),
        ({"eval": EvalConfig(assistant="tiger")}, "eval.assistant tiger writes codes and has no vectors"),
        (
            {"eval": EvalConfig(assistant="sasrec", assistant_weight=0.5)},
            "no finished artefact here, but eval.assistant needs this baseline",
        ),
        (
            {"rl": RlConfig(rewards={"collaborative": 1.0})},
            "baselines/sasrec: no finished artefact here",
        ),
        (
            {"sid": SidConfig(collaborative_model="sasrec")},
            "here, but sid.collaborative_model needs",
        ),
        ({"sid": SidConfig(method="rq-vae", rqvae=RqVaeConfig(hidden=[65536] * 9))}, "The quantizer .* lower sid.rqvae.hidden"),
        ({"sid": SidConfig(vectors="nowhere.npy")}, "sid.vectors nowhere.npy: no such file"),
        (
            {"model": ModelConfig(hidden_size=32768, layers=512)},
            "which take .* GB in training .* lower model.hidden_size",
        ),
    ],
)
def test_a_run_refuses_before_its_first_stage(folder, libraries, sections, message):
    with pytest.raises((ConfigError, ArtifactError), match=message):
        pipeline.run(Config(out=str(folder), **sections), STAGES)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("rl", "message"),
    [
        (
            {"prompts_per_step": 5000, "max_examples": None},
            r"is 5000, but there are only \d+ prompts; lower it",
        ),
        ({"prompts_per_step": 65, "max_examples": 64}, "there are only 64 prompts"),
        ({"num_generations": 31}, "num_generations is 31, but the catalog has only 30 SIDs; lower it"),
        ({"num_generations": 30}, r"only 30 SIDs, and 6 items of a history are left out \(eval.exclude_history"),
    ],
)
def test_what_data_and_sids_tell_is_refused_before_sft(folder, rl, message):
    with_data(folder)
    values = {"prompts_per_step": 8, "micro_batch_prompts": 8, **rl}
    config = Config(out=str(folder), rl=RlConfig(**values), eval=EvalConfig(exclude_history="6 items" in message))
    with pytest.raises(ConfigError, match=message):
        pipeline.run(config, ("sft", "rl"))
    check_early(config, pending=("data", "sid"))  # the data that is there may be replaced
    assert not (folder / "sft").exists()


def test_items_alone_tell_how_many_sids_there_are_at_most(folder):
    with_data(folder, sids=False)
    config = Config(out=str(folder), rl=RlConfig(num_generations=31, prompts_per_step=8))
    with pytest.raises(ConfigError, match="has only 30 SIDs"):
        check_early(config, pending=("sid",))
    for options in ({"rollouts": "sampling"}, {"num_generations": 30}):
        check_early(dataclasses.replace(config, rl=dataclasses.replace(config.rl, **options)), pending=("sid",))
    check_group(config.rl, None, 0)


def test_what_fits_is_not_refused(folder):
    check_early(Config())
    with_data(folder)
    check_early(Config(out=str(folder), rl=RlConfig(prompts_per_step=32)))
    no_validation = RlConfig(best_metric="HR@50", evaluations=0)
    check_early(Config(out=str(folder), rl=no_validation, eval=EvalConfig(num_beams=10)))
    assert early.rows_of(folder, "train") == len(DATASET.train)
    (folder / "data/train.parquet").write_bytes(b"damaged")
    assert early.rows_of(folder, "train") is None


def test_a_baseline_that_is_to_be_trained_first_must_be_the_one_that_is_needed(folder):
    with_data(folder)
    config = Config(out=str(folder), eval=EvalConfig(assistant="gru4rec"), baseline=BaselineConfig(model="gru4rec"))
    early.check_assistant(config, ("baseline",))
    other = dataclasses.replace(config, baseline=BaselineConfig(model="sasrec"))
    with pytest.raises(ArtifactError, match=r"baselines/gru4rec: no finished artefact here"):
        early.check_assistant(other, ("baseline",))


def weighing_titles(folder, **options):
    options = EvalConfig(**{"grounding": "trained", "title_assistant": "popularity", **options})
    return Config(out=str(folder), eval=options, sft=SftConfig(tasks=[NAMING], best_metric="loss", valid_examples=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"title_assistant": "tiger"}, "eval.title_assistant tiger writes codes and has no vectors"),
        ({"title_assistant": "markov"}, "eval.title_assistant markov only counts and has no vectors"),
        ({"title_assistant": "sasrec"}, "no finished artefact here, but eval.title_assistant needs this baseline"),
        (
            {"num_beams": 9},
            "by which eval.title_weight is chosen is NDCG@10, but lists end after 9 .* Set eval.title_weight, or",
        ),
    ],
)
def test_what_cannot_weigh_titles_is_refused_before_any_is_written(folder, options, message):
    with_data(folder)
    config = weighing_titles(folder, **options)
    with pytest.raises((ConfigError, ArtifactError), match=message):
        pipeline._check_ahead(config, ("sft", "eval"))
    pipeline._check_ahead(weighing_titles(folder), ("sft", "eval"))


def test_a_weight_of_titles_is_not_chosen_on_no_rows(folder):
    with_data(folder)
    DATASET.valid.clear().write_parquet(folder / "data/valid.parquet")
    with pytest.raises(ConfigError, match=r"the valid split is empty, and eval.title_weight is chosen on it"):
        early.check_title_assistant(weighing_titles(folder))
    early.check_title_assistant(weighing_titles(folder, num_beams=9, title_weight=0.5))


@pytest.mark.parametrize("titles", [{"grounding": "trained"}, {"title_trie": True}], ids=["grounding", "title_trie"])
def test_a_catalog_without_titles_is_refused_before_a_model_is_trained_to_write_them(folder, titles):
    with_data(folder)
    config = weighing_titles(folder, title_assistant=None, **{"grounding": "none", **titles})
    stages = ("sid", "sft", "eval")
    pipeline._check_ahead(config, stages)
    DATASET.catalog.with_columns(title=pl.lit(" ")).write_parquet(folder / "data/catalog.parquet")
    with pytest.raises(DataError, match=rf"30 of 30 items .* eval\.{next(iter(titles))} ranks items by their titles"):
        pipeline._check_ahead(config, stages)
    pipeline._check_ahead(config, ("data", *stages))  # which may come from other texts
    pipeline._check_ahead(weighing_titles(folder, grounding="none", title_assistant=None), stages)


def test_written_titles_leave_room_for_a_prompt(folder):
    for limit, fits in ((64, False), (65, True)):
        with nullcontext() if fits else pytest.raises(ConfigError, match=r"title_tokens is 64, but prompts.max_tokens is 64,"):
            dataclasses.replace(weighing_titles(folder), prompts=PromptsConfig(max_tokens=limit))


def finished(folder, name, **config):
    with Recipe(name, folder / name, config, {}, 0).write():
        pass


def test_what_cannot_help_is_refused_before_one_is_told_to_train_a_model(folder):
    with_data(folder)
    for stage, message in (("d3", "tiger writes codes"), ("mixture", "mixture.components is empty")):
        with pytest.raises(ConfigError, match=message):
            pipeline._check_ahead(Config(out=str(folder), eval=EvalConfig(assistant="tiger")), (stage,))


def test_a_model_that_is_to_learn_the_valid_split_is_not_evaluated_on_it(folder):
    config = Config(out=str(folder), rl=RlConfig(prompts="valid", evaluations=0), eval=EvalConfig(split="valid"))
    with pytest.raises(ConfigError, match=r"eval.split is valid, but rl.prompts valid would train RL's model on these rows"):
        pipeline.EARLY_CHECKS["eval"](config, ("data", "sid", "sft", "rl"))
    pipeline.EARLY_CHECKS["eval"](config, ("data", "sid", "sft"))


def test_the_encoder_of_a_mixture_is_asked_for_only_if_it_is_needed(folder, monkeypatch):
    """A mixture that is fitted holds its vectors."""
    with_data(folder, sids=False)
    monkeypatch.setattr(sentence_encoders.util, "find_spec", lambda name: None)  # the package of minilm is not installed
    mixture = MixtureConfig(components=["text"])
    config = Config(out=str(folder), mixture=mixture, eval=EvalConfig(normalise_over="catalog"))
    finished(folder, "sid", sid={**dataclasses.asdict(SidConfig()), "shipped": True})
    finished(folder, "sft")
    refused = pytest.raises(ConfigError, match=r"sid\.encoder minilm needs the package")
    with refused:
        pipeline._check_ahead(config, ("mixture", "eval"))
    finished(folder, "mixture/sft")
    pipeline._check_ahead(config, ("mixture", "eval"))
    finished(folder, "rl")
    with refused:  # its mixture is not fitted yet
        pipeline._check_ahead(config, ("mixture", "eval"))
    finished(folder, "mixture/rl")
    shutil.rmtree(folder / "sft")
    with refused:  # a model that is yet to be trained
        pipeline._check_ahead(config, ("sft", "mixture", "eval"))
    finished(folder, "sft")
    with refused:
        pipeline._check_ahead(dataclasses.replace(config, replace=True), ("mixture", "eval"))


def with_baseline_in_the_mixture(folder):
    """Settings of a run whose mixture asks a baseline, and whose trainings are validated with it."""
    mixture = MixtureConfig(components=["markov", "sequential"], sequential="gru4rec", validation=True)
    ranked = {"sft": SftConfig(best_metric="NDCG@10"), "rl": RlConfig(prompts_per_step=8)}
    return Config(out=str(folder), mixture=mixture, eval=EvalConfig(normalise_over="catalog"), **ranked)


def asking(config):
    """What asks for the baseline: the checks of three stages before the data are there and after, and the plans of two."""
    stages = ("data", "sid", "sft", "rl", "mixture", "eval")
    after = [
        lambda first: pipeline.EARLY_CHECKS["mixture"](config, stages[first:4]),
        lambda first: check_early_of_sft(config, stages[first:2]),
        lambda first: check_early(config, stages[first:3]),
    ]
    plans = [lambda stage=stage: pipeline.plan(stage, config, None, None) for stage in ("sft", "rl")]
    return [lambda ask=ask: ask(0) for ask in after], [lambda ask=ask: ask(1) for ask in after], plans


def test_a_baseline_in_the_mixture_is_asked_for_before_anything_is_trained(folder):
    """By every stage that mixes it in, and a training through it is refused: it knows all training rows."""
    with_data(folder)
    config = with_baseline_in_the_mixture(folder)
    missing = r"gru4rec: no finished artefact here, but mixture.sequential needs this baseline. First run"
    for check in itertools.chain(*asking(config)):
        with pytest.raises(ArtifactError, match=missing):
            check()
    check_early_of_sft(dataclasses.replace(config, sft=SftConfig()))  # validated by its loss
    floor = BaselineConfig(model="mixture", components=["sequential"], sequential="gru4rec")
    with pytest.raises(ArtifactError, match=r"but baseline.sequential needs this baseline"):
        pipeline._check_ahead(dataclasses.replace(config, baseline=floor), ("baseline",))
    through = SftConfig(tasks=["history_sid_to_sid"], normalise_over="catalog", mixture=SftMixtureConfig("em"))
    trained = dataclasses.replace(config, sft=through)
    for check in (lambda: check_early_of_sft(trained), lambda: pipeline.plan("sft", trained, None, None)):
        with pytest.raises(ConfigError, match=r"names sequential: gru4rec was trained on every .*mix it in afterwards"):
            check()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"data": "another"}, r"gru4rec: was made from another data than .*minionerec baseline --baseline.model gru4rec"),
        ({"sequences": "0"}, r"gru4rec: was trained on a file of sequences"),
    ],
)
def test_a_baseline_of_other_data_is_refused_before_anything_is_trained(folder, inputs, message):
    """Unless the stage `data` is still to run: the data may be those of the baseline then."""
    with_data(folder)
    (folder / "data" / MANIFEST).unlink()
    finished(folder, "data")
    DATASET.save(folder / "data")
    config, baseline = with_baseline_in_the_mixture(folder), folder / "baselines/gru4rec"
    with Recipe("baselines/gru4rec", baseline, {}, inputs, 0).write():
        pass
    before, after, plans = asking(config)
    for check in before:
        check()
    for check in (*after, *plans):
        with pytest.raises(ArtifactError, match=message):
            check()
    reseal(baseline, inputs={"data": Manifest.load(folder / "data").digest})
    for check in after:
        check()


def test_the_encoder_that_is_asked_for_is_that_of_the_sids(folder, monkeypatch):
    """Whatever the command says, unless it makes the semantic IDs itself."""
    with_data(folder, sids=False)
    monkeypatch.setattr(sentence_encoders.util, "find_spec", lambda name: None)
    finished(folder, "sid", sid=dataclasses.asdict(SidConfig(encoder="tfidf")))
    mixture = MixtureConfig(components=["text"], validation=True)
    config = Config(out=str(folder), mixture=mixture, eval=EvalConfig(normalise_over="catalog"))
    early.check_mixture(config, ())
    trained = dataclasses.replace(config, sft=SftConfig(best_metric="NDCG@10"), rl=RlConfig(prompts_per_step=32))
    check_early_of_sft(trained)
    for refuse in (early.check_mixture, check_early_of_sft, check_early):
        with pytest.raises(ConfigError, match=r"sid\.encoder minilm needs the package"):
            refuse(trained, ("sid",))


def test_the_memory_of_a_model(libraries, monkeypatch, tmp_path):
    config = Config(model=ModelConfig(hidden_size=64, intermediate_size=128, layers=2, heads=2))
    parameters = machine.fewest_parameters(config)
    assert 100_000 < parameters < 300_000
    monkeypatch.setattr(machine, "machine_memory", lambda: 16 * parameters)
    machine.check_model_memory(config)
    monkeypatch.setattr(machine, "machine_memory", lambda: 16 * parameters - 1)
    with pytest.raises(ConfigError, match=rf"at least {parameters:,} parameters, which take 0.0 GB in training"):
        machine.check_model_memory(config)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 4000)
    pretrained = ModelConfig(init="from_pretrained", path=str(tmp_path))
    assert machine.fewest_parameters(Config(model=pretrained)) == 1000
    assert machine.fewest_parameters(Config(model=dataclasses.replace(pretrained, path="nobody/model"))) == 0


def test_wide_searches_and_large_baselines(libraries, folder, monkeypatch):
    with_data(folder)
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**6)
    with pytest.raises(ConfigError, match=r"eval.batch_size 32 and eval.num_beams 10000 need at least 3.2 GB"):
        machine.check_search_memory(Config(eval=EvalConfig(num_beams=10_000)), 10**6)
    wide = Config(out=str(folder), eval=EvalConfig(batch_size=1200))  # 30 items, so 30 beams
    with pytest.raises(ConfigError, match=r"eval.batch_size 1200 and eval.num_beams 50 need"):
        pipeline.run(wide, ("eval",))
    monkeypatch.setattr(machine, "machine_memory", lambda: 10**4)
    with pytest.raises(ConfigError, match=r"The baseline has at least 2,\d+ parameters, .*; lower baseline.hidden_size"):
        pipeline.run(Config(out=str(folder), baseline=BaselineConfig(hidden_size=40, layers=1)), ("baseline",))
    machine.check_baseline_memory(BaselineConfig(), 10**9)  # the width is the model's own


def test_a_training_that_is_expected_to_take_too_much_says_so(libraries, monkeypatch, caplog):
    plan = SimpleNamespace(stage="rl", memory_per_process=3 * 10**9, devices=SimpleNamespace(count=2))
    for memory in (7 * 10**9, 5 * 10**9):
        monkeypatch.setattr(machine, "machine_memory", lambda memory=memory: memory)
        machine.warn_about_memory(plan)
    assert [record.getMessage()[:66] for record in caplog.records] == [
        "rl is expected to take 6.0 GB, but this machine has 5.0 GB: lower "
    ]


def test_a_container_has_less_memory_than_its_machine(monkeypatch, tmp_path):
    whole = machine.machine_memory()
    for text, expected in (("1000000\n", 1_000_000), ("max\n", whole), (str(10**18), whole)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "memory.max"),))
        assert machine.machine_memory() == expected or text != "1000000\n"


def test_reinforcement_learning_of_a_model_of_titles_is_refused_before_it_is_trained(folder):
    with pytest.raises(
        ConfigError, match=r"sft.tasks is \[history_title_to_title\]: none of them has a SID as its answer, so RL"
    ):
        pipeline._check_ahead(weighing_titles(folder), ("data", "sid", "sft", "rl", "eval", "report"))
    with_data(folder)
    pipeline._check_ahead(weighing_titles(folder), ("sft", "eval"))
