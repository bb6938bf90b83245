import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, LlamaConfig, LlamaForCausalLM, TrainerCallback

from minionerec.artifacts import folder_digest, read_json
from minionerec.config import ModelConfig, SftConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, TrainingError
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.sft import plan as sft_plan
from minionerec.sft.arguments import training_arguments
from minionerec.sft.train import base_model
from minionerec.sft.trainer import TreeCollator, TreeTrainer
from minionerec.sft.trees import build_trees, examples_by_task, with_answers_in_prompts
from minionerec.sid.index import SidIndex
from minionerec.training.checkpoints import MarkComplete, last_checkpoint
from tests.launch import accelerate
from tests.small import config, listed_examples, random_dataset

TASKS = ["history_sid_to_sid", "title_to_sid", "sid_to_title"]
SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), SIZES, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return dataset, index, model, tokenizer


def padded(branches):
    """The ordinary batch: every example whole, padded on the right, loss on the completion only."""
    rows = [[*branch.prompt, *branch.completion] for branch in branches]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, branch in enumerate(branches):
        labels[row, : len(branch.prompt)] = -100
    return ids, mask, labels


@pytest.mark.parametrize("stride", [1, 3, 6])
def test_every_example_is_in_exactly_one_tree(parts, stride):
    dataset, index, _, tokenizer = parts
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train", stride), stride).trees
    examples = [e for t in TASKS for e in listed_examples(Prompts(dataset, index, tokenizer), t, "train", stride)]
    key = lambda example: (tuple(example.prompt), tuple(example.completion))  # noqa: E731
    assert sorted(key(branch) for tree in trees for branch in tree) == sorted(map(key, examples))
    assert max(map(len, trees)) <= stride


def test_loss_and_gradients_equal_a_padded_batch_under_accumulation(parts, tmp_path):
    dataset, index, model, tokenizer = parts
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train", 6), 6).trees[-12:] * 2
    ids, mask, labels = padded([branch for tree in trees for branch in tree])
    logits = model.train()(ids, attention_mask=mask).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
    model.zero_grad()
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for micro in (24, 6):
        arguments = training_arguments(SftConfig(batch_size=24, micro_batch=micro), 0, tmp_path, len(trees))
        trainer = TreeTrainer(
            model=model, args=arguments, train_dataset=trees, eval_dataset=trees, data_collator=TreeCollator(64)
        )
        collated = [TreeCollator(64)(trees[start : start + micro]) for start in range(0, 24, micro)]
        total = sum(len(batch["labels"]) for batch in collated)
        losses = [trainer.compute_loss(model, batch, num_items_in_batch=total) for batch in collated]
        torch.testing.assert_close(sum(losses), expected, atol=1e-5, rtol=0)
        sum(losses).backward()
        for ours, parameter in zip(gradients, model.parameters(), strict=True):
            assert (ours - parameter.grad).norm() <= 1e-5 * ours.norm() + 1e-9
        model.zero_grad()
        assert trainer.evaluate(trees)["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)
        everything = trainer.compute_loss(model, TreeCollator(64)(trees[:23]))  # 23 trees do not fill the last batch
        assert trainer.evaluate(trees[:23])["eval_loss"] == pytest.approx(everything.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 10, "micro_batch": 4}, "does not split into 1 device"),
        ({"batch_size": 200, "micro_batch": 50}, "only 100 trees"),
    ],
)
def test_batches_that_do_not_fit(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        training_arguments(SftConfig(**fields), 0, tmp_path, 100)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    made = config(tmp_path_factory.mktemp("sft"))
    run(made, ("data", "sid"))
    return made


def losses(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_learns_and_is_deterministic(prepared):
    run(prepared, ("sft",))
    first = losses(prepared.folder / "sft")
    weights = (prepared.folder / "sft/model/model.safetensors").read_bytes()
    validation = [row["eval_loss"] for row in first if "eval_loss" in row]
    assert min(validation) < 0.95 * validation[0]
    manifest = read_json(prepared.folder / "sft/manifest.json")
    assert manifest["metrics"]["best_valid_loss"] == pytest.approx(min(validation))

    (prepared.folder / "sft/manifest.json").unlink()
    run(prepared, ("sft",))
    assert losses(prepared.folder / "sft") == first
    assert (prepared.folder / "sft/model/model.safetensors").read_bytes() == weights


def test_normalised_over_the_catalog_in_training_and_evaluation(prepared):
    """Its losses start lower, as fewer tokens share the probability, and another way of scoring is another evaluation."""
    made = replace(prepared, sft=replace(prepared.sft, epochs=1), eval=replace(prepared.eval, oracle_examples=4))
    run(made, ("sft",))
    plain = losses(made.folder / "sft")
    made.sft.normalise_over = "catalog"
    run(made, ("sft", "eval"))
    assert losses(made.folder / "sft")[0]["loss"] < 0.9 * plain[0]["loss"]
    keys = {read_json(made.folder / "eval/sft/manifest.json")["key"]}
    scores = [json.loads((made.folder / "eval/sft/predictions.jsonl").read_text().splitlines()[0])["scores"]]
    made.eval.normalise_over = "catalog"
    run(made, ("eval",))
    keys.add(read_json(made.folder / "eval/sft/manifest.json")["key"])
    scores.append(json.loads((made.folder / "eval/sft/predictions.jsonl").read_text().splitlines()[0])["scores"])
    assert len(keys) == 2 and scores[1][0] > scores[0][0]


@pytest.mark.parametrize("fields", [{}, {"train": "lora"}], ids=["full", "lora"])
def test_the_best_model_by_a_ranking_metric(prepared, tmp_path, fields):
    """The model that is kept has the highest validation by beam search, which changes nothing in training."""
    if fields:
        checkpoint.save(*scratch.create(["any text of theirs", "lamp chair table"], SIZES, 0), tmp_path / "base")
        prepared = replace(prepared, model=ModelConfig(init="from_pretrained", path=str(tmp_path / "base")))
    logs = []
    for metric in ("loss", "NDCG@10"):
        made = replace(prepared, out=str(tmp_path / metric), sft=replace(prepared.sft, **fields, best_metric=metric))
        run(made, ("data", "sid", "sft"))
        logs.append(losses(made.folder / "sft"))
    values = [row["eval_NDCG@10"] for row in logs[1] if "eval_NDCG@10" in row]
    assert len(values) == 4 and len(set(values)) > 1
    for ours, theirs in zip(*logs, strict=True):
        same = theirs.keys() & {"loss", "eval_loss", "grad_norm"}
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    best = read_json(made.folder / "sft/manifest.json")["metrics"]["best_valid_NDCG@10"]
    assert best == max(values)
    run(replace(made, eval=replace(made.eval, split="valid")), ("eval",))
    metrics = read_json(made.folder / "eval/sft/metrics.json")["sid"]["NDCG@10"]
    assert metrics["value"] == pytest.approx(best, rel=1e-6)
    # Shorter lists in the validations may choose another model, so the finished one is not taken for it.
    run(replace(made, eval=replace(made.eval, num_beams=5)), ("sft",))
    assert read_json(made.folder / "sft/manifest.json")["config"]["validation"]["num_beams"] == 5


def test_micro_batches_do_not_matter(prepared):
    prepared.sft.batch_size, logs = 16, []
    for micro in (16, 4):  # 73 trees are 4 steps an epoch; 18 micro-batches of 4 would leave 2 over for a short fifth step
        prepared.sft.micro_batch = micro
        shutil.rmtree(prepared.folder / "sft", ignore_errors=True)  # it would be taken for current
        run(prepared, ("sft",))
        logs.append(losses(prepared.folder / "sft"))
    prepared.sft.batch_size, prepared.sft.micro_batch = 8, 4
    for ours, theirs in zip(*logs, strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_what_an_error_advises_keeps_the_checkpoints(prepared, monkeypatch):
    """A run that failed goes on with smaller micro-batches; what is refused destroys nothing."""
    run(prepared, ("sft",))
    alone = losses(prepared.folder / "sft")
    shutil.rmtree(prepared.folder / "sft")
    summed, steps = TreeTrainer._summed_loss, []

    def spoiled(self, model, *args):
        steps.append(self.state.global_step)
        loss, count = summed(self, model, *args)
        return loss * torch.nan if model.training and steps[-1] == 30 else loss, count

    with monkeypatch.context() as patch:
        patch.setattr(TreeTrainer, "_summed_loss", spoiled)
        with pytest.raises(TrainingError, match="loss of step 31 is not finite"):
            run(prepared, ("sft",))
    batch = prepared.folder / "sft-failed/not-finite-step-31-rank-0.safetensors"
    for fields in ({"batch_size": 10}, {"batch_size": 80}, {"micro_tokens": 3}, {"bf16": True, "report_to": ["wandb"]}):
        with pytest.raises(ConfigError):
            run(replace(prepared, sft=replace(prepared.sft, **fields)), ("sft",))
        assert (prepared.folder / "sft.partial/checkpoints/checkpoint-18/complete.json").is_file() and batch.is_file()
    steps.clear()
    monkeypatch.setattr(
        TreeTrainer, "_summed_loss", lambda self, *args: steps.append(self.state.global_step) or summed(self, *args)
    )
    fields = {"micro_batch": 2, "row_tokens": 128, "gradient_checkpointing": True}
    run(replace(prepared, sft=replace(prepared.sft, **fields)), ("sft",))
    assert steps[0] == 18 and batch.is_file()
    for ours, theirs in zip(losses(prepared.folder / "sft"), alone, strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    manifest = read_json(prepared.folder / "sft/manifest.json")
    assert fields.items() <= manifest["config"]["sft"].items()
    run(prepared, ("sft",))  # as current as before
    assert read_json(prepared.folder / "sft/manifest.json") == manifest


def test_nothing_is_loaded_for_a_batch_that_does_not_split(prepared, monkeypatch):
    monkeypatch.setattr("minionerec.sft.train.base_model", None)
    monkeypatch.setattr("minionerec.sft.plan.base_model", None)
    made = replace(prepared, sft=replace(prepared.sft, batch_size=10))
    for start in (lambda: run(made, ("sft",)), lambda: sft_plan.plans(made)):
        with pytest.raises(ConfigError, match=r"sft.batch_size 10 does not split"):
            start()


def test_from_pretrained_takes_a_saved_model_and_notices_when_it_changes(prepared, tmp_path):
    base, run_folder = tmp_path / "base", tmp_path / "run"
    for seed in (0, 1):
        checkpoint.save(*scratch.create(["any text of theirs", "lamp chair table"], SIZES, seed), base)
        small = replace(prepared, out=str(run_folder), model=ModelConfig(init="from_pretrained", path=str(base)))
        run(small, ("data", "sid", "sft"))
        model, tokenizer = checkpoint.load(run_folder / "sft/model")
        index = SidIndex.load(run_folder / "sid", Dataset.load(run_folder / "data"))
        assert checkpoint.sid_token_ids(tokenizer, index).shape == (48, 3)
        assert checkpoint.vocabulary_rows(model) == len(tokenizer) == len(checkpoint.load(base)[1]) + 24
        digests = read_json(run_folder / "sft/manifest.json")["inputs"]
        assert digests["model"] == folder_digest(base)


class Interrupt(TrainerCallback):
    """Ctrl-C at a step."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 23:
            raise KeyboardInterrupt


def test_early_stopping_goes_on_counting_after_an_interruption(parts, tmp_path):
    dataset, index, model, tokenizer = parts
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train", 6), 6).trees
    start = {name: value.clone() for name, value in model.state_dict().items()}
    # The learning rate destroys the model, so the first validation stays the best and patience runs out at the fourth.
    fields = SftConfig(batch_size=8, micro_batch=8, epochs=20, evaluations=12, learning_rate=0.3, patience=3, warmup=0.5)

    def train(folder, *callbacks):
        model.load_state_dict(start)
        arguments = training_arguments(fields, 0, folder, len(trees))
        trainer = TreeTrainer(
            model=model,
            args=arguments,
            train_dataset=trees,
            eval_dataset=trees[:8],
            data_collator=TreeCollator(64),
            callbacks=[MarkComplete(), EarlyStoppingCallback(fields.patience), *callbacks],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        return trainer.state

    undisturbed = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", Interrupt())
    resumed = train(tmp_path / "b")
    model.load_state_dict(start)
    assert resumed.global_step == undisturbed.global_step < undisturbed.max_steps
    assert resumed.best_metric == undisturbed.best_metric


def test_two_processes_give_the_single_process_losses(prepared):
    run(prepared, ("sft",))
    alone = losses(prepared.folder / "sft")
    (prepared.folder / "sft/manifest.json").unlink()
    done = accelerate(2, "sft/train.py", "--config", str(prepared.folder.parent / "small.yaml"), "--sft.micro_batch", "2")
    assert done.stdout.count("sft: 2 processes on CPUs (DDP); 2 trees x 2 micro-batches per process and step") == 1
    metrics = read_json(prepared.folder / "sft/manifest.json")["metrics"]
    assert (metrics["devices"], metrics["distributed"]) == (2, "MULTI_CPU")
    together = losses(prepared.folder / "sft")
    assert len(together) == len(alone)
    for ours, theirs in zip(together, alone, strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_killed_under_zero2_and_resumed_by_two_ranks_or_by_one(prepared, tmp_path):
    """Both go on with the curve of the run that was left alone, from the last checkpoint, whoever wrote it."""
    run(prepared, ("sft",))
    alone = losses(prepared.folder / "sft")
    (prepared.folder / "sft/manifest.json").unlink()
    path = str(prepared.folder.parent / "small.yaml")
    launcher = ["--config_file", "sft/zero2.yaml"]
    killed = accelerate(2, *launcher, "tests/sft/killed.py", "53", "--config", path, check=False)
    assert re.search("exitcode *: 9", killed.stdout + killed.stderr), killed.stdout + killed.stderr
    partial = prepared.folder / "sft.partial"
    steps = [int(path.parent.name.partition("-")[2]) for path in (partial / "checkpoints").glob("*/complete.json")]
    assert max(steps) == 36
    kept = tmp_path / "partial"
    shutil.copytree(partial, kept)

    def resumed():
        log = losses(prepared.folder / "sft")
        assert len(log) == len(alone)
        for ours, theirs in zip(log, alone, strict=True):
            assert ours["step"] == theirs["step"]
            for name in theirs.keys() & {"loss", "eval_loss", "grad_norm", "learning_rate"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
        return read_json(prepared.folder / "sft/manifest.json")["metrics"]

    again = accelerate(2, *launcher, "sft/train.py", "--config", path, "--sft.micro_batch", "2")
    assert again.stdout.count("sft: 2 processes on DeepSpeed ZeRO-2; 2 trees x 2 micro-batches per process and step") == 1
    metrics = resumed()
    assert (metrics["devices"], metrics["distributed"]) == (2, "DEEPSPEED")
    shutil.rmtree(prepared.folder / "sft")
    shutil.copytree(kept, partial)
    run(prepared, ("sft",))
    metrics = resumed()
    assert (metrics["devices"], metrics["distributed"]) == (1, "NO")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "launcher"), [("gradient", "ddp"), ("gradient", "zero2"), ("loss", "ddp"), ("loss", "zero2")])
def test_what_is_no_number_on_one_rank_stops_all(prepared, tmp_path, what, launcher):
    """Two processes with accumulation; the checkpoint before the step stays, and the batch of the rank that saw it is kept."""
    config_of = ["--config", str(prepared.folder.parent / "small.yaml"), "--out", str(tmp_path), "--sft.micro_batch", "2"]
    for stage in ("data", "sid"):
        shutil.copytree(prepared.folder / stage, tmp_path / stage)
    options = ["--config_file", "sft/zero2.yaml"] if launcher == "zero2" else []
    done = accelerate(2, *options, "tests/sft/spoiled.py", what, "25", *config_of, check=False)
    assert done.returncode and f"The {what} of step 25 is not finite" in " ".join((done.stdout + done.stderr).split())
    assert [path.parent.name for path in tmp_path.glob("sft.partial/checkpoints/*/complete.json")] == ["checkpoint-18"]
    kept = sorted(path.name for path in (tmp_path / "sft-failed").iterdir())
    assert kept and (what == "gradient" or kept == ["not-finite-step-25-rank-1.safetensors"])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_sid_rows_under_zero2_leave_all_else_bit_for_bit(prepared, tmp_path, tied, precision):
    """DeepSpeed casts the whole model to bfloat16; what is saved has the base's own float32 weights."""
    _, tokenizer = scratch.create(["any text of theirs", "lamp chair table number"], SIZES, 0)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes))
    checkpoint.save(base, tokenizer, tmp_path / "base")
    for stage in ("data", "sid"):
        shutil.copytree(prepared.folder / stage, tmp_path / "run" / stage)
    fields = ["--sft.train", "sid_rows", "--sft.bf16", str(precision == "bf16").lower(), "--sft.epochs", "2", "--out"]
    model = ["--model.init", "from_pretrained", "--model.path", str(tmp_path / "base")]
    config_of = ["--config", str(prepared.folder.parent / "small.yaml"), *fields, str(tmp_path / "run"), *model]
    accelerate(2, "--mixed_precision", precision, "--config_file", "sft/zero2.yaml", "sft/train.py", *config_of)
    made = replace(prepared, model=ModelConfig(init="from_pretrained", path=str(tmp_path / "base")))
    dataset = Dataset.load(prepared.folder / "data")
    index = SidIndex.load(prepared.folder / "sid", dataset)
    before, words = base_model(made, dataset, index)
    rows = checkpoint.sid_token_ids(words, index).unique()
    after = checkpoint.load(tmp_path / "run/sft/model")[0].state_dict()
    saved = load_file(tmp_path / "run/sft/model/model.safetensors")
    assert {values.dtype for values in saved.values()} == {torch.float32}
    assert before.state_dict().keys() == after.keys()
    for name, values in before.state_dict().items():
        changed = (values != after[name]).view(len(values), -1).any(1).nonzero()[:, 0]
        assert torch.equal(changed, rows if name in ("model.embed_tokens.weight", "lm_head.weight") else rows[:0]), name


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "precision"), [(["--sft.train", "lora"], "no"), (["--sft.bf16", "true"], "bf16")])
def test_adapters_and_bfloat16_killed_and_resumed_under_zero2(prepared, tmp_path, fields, precision):
    """Three launches of two ranks: undisturbed, killed, resumed with the same curve; from a model that was trained before."""
    run(prepared, ("sft",))
    shutil.copytree(prepared.folder / "sft/model", tmp_path / "base")
    base = ["--model.init", "from_pretrained", "--model.path", str(tmp_path / "base")]
    command = ["--config", str(prepared.folder.parent / "small.yaml"), *base, *fields]
    launcher = ["--mixed_precision", precision, "--config_file", "sft/zero2.yaml"]
    shutil.rmtree(prepared.folder / "sft")
    accelerate(2, *launcher, "sft/train.py", *command)
    alone = losses(prepared.folder / "sft")
    shutil.rmtree(prepared.folder / "sft")
    killed = accelerate(2, *launcher, "tests/sft/killed.py", "53", *command, check=False)
    assert re.search("exitcode *: 9", killed.stdout + killed.stderr), killed.stdout + killed.stderr
    assert list((prepared.folder / "sft.partial/checkpoints").glob("*/complete.json"))
    accelerate(2, *launcher, "sft/train.py", *command)
    log = losses(prepared.folder / "sft")
    assert [row["step"] for row in log] == [row["step"] for row in alone]
    for ours, theirs in zip(log, alone, strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_the_released_answer_in_the_prompt(parts):
    dataset, index, _, tokenizer = parts
    examples = examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train")
    clean = build_trees(examples, 1).trees
    mistaken = build_trees(with_answers_in_prompts(examples), 1).trees
    histories = len(dataset.train)
    for number, (tree, given_away) in enumerate(zip(clean, mistaken, strict=True)):
        (branch,), (other,) = tree, given_away
        answer = [] if number < histories else branch.completion
        assert [*other.prompt] == [*branch.prompt, *answer] and other.completion == branch.completion
