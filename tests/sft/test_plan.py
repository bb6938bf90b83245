import re
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, Lfm2Config, MistralConfig

from minionerec.artifacts import read_json
from minionerec.cli import main
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, ConstraintError
from minionerec.model import checkpoint, scratch
from minionerec.model.base import base_model
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.rl import plan as rl_plan
from minionerec.sft import plan as sft_plan
from minionerec.sft.train import starting_model
from minionerec.sft.trainer import TreeCollator
from minionerec.sft.trees import build_trees, examples_by_task
from minionerec.sid.index import SidIndex
from minionerec.training.plan import PackedShape
from tests.model.test_checkpoint import SIZES
from tests.small import config, listed_examples

TASKS = ["history_sid_to_sid", "title_to_sid", "sid_to_title"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with its SFT model, and the plan that was made before."""
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIONEREC_CACHE", str(folder / "cache"))
        made = config(folder, sft={"epochs": 2})
        run(made, ("data", "sid"))
        planned = sft_plan.plans(made)
        assert not (made.folder / "sft").exists() and not (made.folder / "sft.partial").exists()
        run(made, ("sft",))
        yield made, planned


def test_the_plan_is_what_the_trainer_sees(trained):
    made, (planned,) = trained
    dataset = Dataset.load(made.folder / "data")
    index = SidIndex.load(made.folder / "sid", dataset)
    model, _ = checkpoint.load(made.folder / "sft/model")
    _, tokenizer = base_model(made.model, index, tokenizer_corpus(dataset), made.seed, weights=False)
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer, context=2048), TASKS, "train", 6), 6).trees
    examples = [e for t in TASKS for e in listed_examples(Prompts(dataset, index, tokenizer), t, "train", 6)]
    assert planned.work.tokens == sum(len(example.prompt) + len(example.completion) for example in examples)
    collator = TreeCollator(made.sft.row_tokens)
    assert planned.work.labels == sum(len(collator([tree])["labels"]) for tree in trees)
    assert sum(counts["tokens"] for counts in planned.work.tasks.values()) == planned.work.tokens
    assert planned.shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert metrics["steps"] <= planned.work.steps == len(trees) // made.sft.batch_size * made.sft.epochs
    assert {name: metrics[name] for name in planned.metrics()} == planned.metrics()
    assert metrics["tasks"] == planned.work.tasks and list(metrics["tasks"]) == TASKS
    widest = [collator(trees[start : start + 4])["input_ids"].numel() for start in range(0, len(trees), 4)]
    assert min(widest) <= planned.positions / (planned.work.steps * planned.work.accumulation) <= max(widest)


def test_a_tokenizer_does_not_learn_the_sentence_that_only_evaluation_asks(trained):
    """The key of `sft` does not cover that sentence."""
    run_config, _ = trained
    dataset = Dataset.load(run_config.folder / "data")
    index = SidIndex.load(run_config.folder / "sid", dataset)
    vocabularies = []
    for eval_style in ("same", "released"):
        prompts = replace(run_config.prompts, wording="released", eval_style=eval_style)
        vocabularies.append(starting_model(replace(run_config, prompts=prompts), dataset, index)[1].get_vocab())
    assert vocabularies[0] == vocabularies[1]


def test_tokens_without_weight_are_no_labels(trained):
    made, (planned,) = trained
    sids = replace(made, sft=replace(made.sft, tasks=TASKS[:2]))
    (all_levels,), (two_levels,) = (
        sft_plan.plans(replace(sids, sft=replace(sids.sft, level_weights=weights))) for weights in (None, [1, 1, 0])
    )
    assert two_levels.work.labels * 3 == all_levels.work.labels * 2 < planned.work.labels * 2
    assert two_levels.work.tokens == all_levels.work.tokens


def test_trees_do_not_depend_on_the_cache(trained, monkeypatch, tmp_path):
    made, _ = trained
    dataset = Dataset.load(made.folder / "data")
    index = SidIndex.load(made.folder / "sid", dataset)
    tokenizer = checkpoint.load(made.folder / "sft/model")[1]
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path))
    prompts = Prompts(dataset, index, tokenizer, context=2048)
    first = build_trees(examples_by_task(prompts, TASKS, "train", 6), 6)
    assert len(list((tmp_path / "tokens").iterdir())) == 3
    assert build_trees(examples_by_task(prompts, TASKS, "train", 6), 6) == first


def test_more_devices_take_the_same_steps_and_zero2_less_memory(trained):
    made, (alone,) = trained
    zero2, ddp = sft_plan.plans(made, 2)
    assert zero2.devices.zero2 and not ddp.devices.zero2
    assert {plan.work.steps for plan in (alone, zero2, ddp)} == {alone.work.steps}
    assert alone.work.accumulation == 2 and ddp.work.accumulation == 1
    assert ddp.memory_per_process > alone.memory_per_process
    with pytest.raises(ConfigError, match=r"does not split into 3 device\(s\)"):
        sft_plan.plans(made, 3)


def test_rl_is_planned_with_the_trained_model_and_without_it(trained, tmp_path):
    made, _ = trained
    (after,) = rl_plan.plans(made)
    hidden = made.folder / "sft.hidden"
    (made.folder / "sft").rename(hidden)
    try:
        (before,) = rl_plan.plans(made)
    finally:
        hidden.rename(made.folder / "sft")
    assert before.shape == after.shape and before.work == after.work
    assert after.memory["reference model"] == after.memory["weights"] == 4 * after.shape.parameters
    assert after.work.labels == after.work.units * 4 * 3


@pytest.fixture
def command(trained, tmp_path):
    return ["--config", str(trained[0].folder.parent / "small.yaml")]


def test_the_dry_run_of_the_command_line(command, capsys):
    assert main(["sft", *command, "--dry-run", "--devices", "2", "--gpu-memory=80"]) == 0
    printed = capsys.readouterr().out
    assert "Plan of sft on 2 devices, ZeRO-2" in printed and "Plan of sft on 2 devices, DDP" in printed
    assert re.search(r"of 80 GB\W+fits", printed)


def test_the_dry_run_for_several_machines(command, capsys):
    assert main(["sft", *command, "--dry-run", "--machines", "2", "--devices", "1", "--gbit", "10"]) == 0
    printed = capsys.readouterr().out
    assert "Plan of sft on 2 devices, DDP" in printed and "(2 machines x 1 devices)" in printed
    assert printed.count("link of 10 Gbit/s is busy per step") == 2 and "disk of the run's folder, at most" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "2"], "--devices belongs to --dry-run"),
        (["--gbit", "2.5"], "--gbit belongs to --dry-run: minionerec sft --dry-run --gbit 2.5"),
        (["--dry-run", "--machines", "2"], "--machines needs --devices"),
        (["--dry-run", "--devices", "2", "--gbit", "10"], "pass --machines, too"),
        (["--dry-run", "--devices", "0"], "--devices is 0; it must be from 1 to 100,000."),
        (["--dry-run", "--devices", "1.5"], "--devices is 1.5. Expected a whole number."),
        (["--dry-run", "--gpu-memory", "many"], "--gpu-memory is 'many'. Expected a number."),
        (["--dry-run=yes"], "--dry-run takes no value"),
        (
            ["--dry-run", "--model.init", "from_pretrained", "--model.path", "nowhere"],
            "model.path nowhere: there is no such folder, the hub cannot be reached, and its cache does not hold this model.",
        ),
    ],
)
def test_refused_options(command, capsys, options, message):
    assert main(["sft", *command, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_model_card_and_the_curves(trained):
    made, (planned,) = trained
    card = (made.folder / "sft/model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "# small: supervised fine-tuning" in card
    assert f"| parameters | {planned.shape.parameters:,} |" in card and "| items | 48 |" in card
    loss = read_json(made.folder / "sft/manifest.json")["metrics"]["best_valid_loss"]
    assert f"| best_valid_loss | {loss:.4g} |" in card and "history_stride: 6" in card and "your own files" in card
    assert re.search(r"\| figures on valid \| means over \d+ examples, of the step that they chose \|", card)
    assert AutoModelForCausalLM.from_pretrained(made.folder / "sft/model").num_parameters() == planned.shape.parameters
    page = (made.folder / "sft/curves.html").read_text()
    assert page.count('<div class="plot" role="img" aria-label="Plot of ') >= 2 and "Loss" in page
    assert not re.search(r"<(script|link|img)\b[^>]*(src|href)=", page)


def saved_base(folder, kind, **fields):
    """A tiny untrained base model of another architecture, with a tokenizer."""
    _, tokenizer = scratch.create(["any text of theirs", "lamp chair table"], SIZES, 0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **sizes, **fields))
    checkpoint.save(model, tokenizer, folder)
    return folder


def test_a_prompt_beyond_the_window_is_refused_by_the_plan_and_before_the_first_step(copy, tmp_path):
    copied = copy(base=saved_base(tmp_path / "base", MistralConfig, sliding_window=8))
    too_long = r"A path of \d+ tokens is longer than the model's attention window of 8"
    with pytest.raises(ConstraintError, match=too_long):
        sft_plan.plans(copied)
    with pytest.raises(ConstraintError, match=too_long):
        run(copied, ("sft",))
    assert not (copied.folder / "sft").exists() and not (copied.folder / "sft.partial").exists()


def test_a_model_that_trees_cannot_compute_is_refused_before_the_data_are_prepared(copy, tmp_path):
    base = saved_base(tmp_path / "base", Lfm2Config, layer_types=["conv", "full_attention"])
    fresh = replace(copy(base=base), out=str(tmp_path / "fresh"))
    with pytest.raises(ConfigError, match="layers of kind conv"):
        run(fresh, ("data", "sid", "sft"))
    assert not fresh.folder.exists() or not [*fresh.folder.iterdir()]


def test_rows_of_the_length_with_the_fewest_operations_that_fits(trained):
    made, (planned,) = trained
    model = base_model_without_weights(made)
    # Short rows compute more positions twice; long ones cost more attention.
    positions = {256: 8192, 512: 2048, 1024: 1024, 2048: 2048, 4096: 4096}

    def work_of(tokens):
        shape = PackedShape(positions[tokens] // tokens, tokens, 300)
        return replace(planned.work, sample=(shape,), largest=(shape,))

    plans = {tokens: replace(planned, work=work_of(tokens)) for tokens in sft_plan.ROW_TOKENS}
    operations = {tokens: plan.flops for tokens, plan in plans.items()}
    best = min(operations, key=operations.get)
    assert best in (512, 1024) and len(set(operations.values())) == 5
    choose = lambda memory: sft_plan.fitting_row_tokens(model, work_of, planned.devices, memory)  # noqa: E731
    assert choose(10**12) == best and choose(1) == 256
    needed = {tokens: (plan.memory_per_process + 3 * positions[tokens] * tokens) / 0.9 for tokens, plan in plans.items()}
    for memory in (int(size) + 1 for size in needed.values()):
        assert choose(memory) == min((tokens for tokens in needed if needed[tokens] <= memory), key=operations.get)
    for tokens in sft_plan.ROW_TOKENS:  # a number is taken as it is
        assert sft_plan.row_tokens_of(replace(made.sft, row_tokens=tokens), model, work_of, planned.devices) == tokens


def base_model_without_weights(made):
    dataset = Dataset.load(made.folder / "data")
    index = SidIndex.load(made.folder / "sid", dataset)
    return base_model(made.model, index, tokenizer_corpus(dataset), made.seed, weights=False)[0]
