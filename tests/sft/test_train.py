import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, TrainerCallback

from minionerec.artifacts import folder_digest, read_json
from minionerec.config import DTYPES, ModelConfig, SftConfig
from minionerec.data.dataset import Dataset
from minionerec.errors import ConfigError, TrainingError
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts
from minionerec.sft import plan as sft_plan
from minionerec.sft.arguments import training_arguments
from minionerec.sft.train import sft_recipe
from minionerec.sft.trainer import TreeCollator, TreeTrainer
from minionerec.sft.trees import build_trees, examples_by_task, with_answers_in_prompts
from minionerec.sid.index import SidIndex
from minionerec.training.checkpoints import MarkComplete, last_checkpoint
from tests.small import listed_examples, losses, random_dataset, untrained_model

TASKS = ["history_sid_to_sid", "title_to_sid", "sid_to_title"]
SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    return dataset, index, *untrained_model(dataset, index, SIZES)


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


def test_learns_and_is_deterministic(alone, copy):
    first = losses(alone)
    validation = [row["eval_loss"] for row in first if "eval_loss" in row]
    assert min(validation) < 0.95 * validation[0]
    assert read_json(alone / "manifest.json")["metrics"]["best_valid_loss"] == pytest.approx(min(validation))
    again = copy()
    run(again, ("sft",))
    assert losses(again.folder / "sft") == first
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (alone, again.folder / "sft")]
    assert weights[0] == weights[1]


def test_normalised_over_the_catalog_in_training_and_evaluation(copy):
    """Its losses start lower, as fewer tokens share the probability, and another way of scoring is another evaluation."""
    made = copy(epochs=1)
    made.eval = replace(made.eval, oracle_examples=4)
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


@pytest.mark.parametrize(
    "fields", [{}, pytest.param({"train": "lora", "epochs": 2}, marks=pytest.mark.slow)], ids=["full", "lora"]
)
def test_the_best_model_by_a_ranking_metric(alone, copy, tmp_path, fields):
    """The model that is kept has the highest validation by beam search, which changes nothing in training."""
    by_loss, base = alone, None
    if fields:
        base = tmp_path / "base"
        checkpoint.save(*scratch.create(["any text of theirs", "lamp chair table"], SIZES, 0), base)
        made = copy("loss", base, **fields)
        run(made, ("sft",))
        by_loss = made.folder / "sft"
    by_metric = copy("metric", base, **fields, best_metric="NDCG@10")
    run(by_metric, ("sft",))
    logs = losses(by_loss), losses(by_metric.folder / "sft")
    values = [row["eval_NDCG@10"] for row in logs[1] if "eval_NDCG@10" in row]
    assert len(values) == 3 and len(set(values)) > 1
    for ours, theirs in zip(*logs, strict=True):
        same = theirs.keys() & {"loss", "eval_loss", "grad_norm"}
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    best = read_json(by_metric.folder / "sft/manifest.json")["metrics"]["best_valid_NDCG@10"]
    assert best == max(values)
    run(replace(by_metric, eval=replace(by_metric.eval, split="valid")), ("eval",))
    metrics = read_json(by_metric.folder / "eval/sft/metrics.json")["sid"]["NDCG@10"]
    assert metrics["value"] == pytest.approx(best, rel=1e-6)
    if fields:
        return
    # Longer lists in the validations may choose another model, so the finished one is not taken for it.
    run(replace(by_metric, eval=replace(by_metric.eval, num_beams=12)), ("sft",))
    assert read_json(by_metric.folder / "sft/manifest.json")["config"]["validation"]["num_beams"] == 12


def test_micro_batches_do_not_matter(copy):
    logs = []
    for micro in (16, 4):  # 73 trees are 4 steps an epoch; 18 micro-batches of 4 would leave 2 over for a short fifth step
        made = copy(str(micro), batch_size=16, micro_batch=micro, epochs=2)
        run(made, ("sft",))
        logs.append(losses(made.folder / "sft"))
    for ours, theirs in zip(*logs, strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_what_an_error_advises_keeps_the_checkpoints(alone, copy, monkeypatch):
    """A run that failed goes on with smaller micro-batches; what is refused destroys nothing."""
    prepared = copy()
    summed, steps = TreeTrainer._summed_loss, []

    def spoiled(self, model, *args):
        steps.append(self.state.global_step)
        loss, count = summed(self, model, *args)
        return loss * torch.nan if model.training and steps[-1] == 7 else loss, count

    with monkeypatch.context() as patch:
        patch.setattr(TreeTrainer, "_summed_loss", spoiled)
        with pytest.raises(TrainingError, match="loss of step 8 is not finite"):
            run(prepared, ("sft",))
    batch = prepared.folder / "sft-failed/not-finite-step-8-process-0.safetensors"
    for fields in ({"batch_size": 10}, {"batch_size": 80}, {"micro_tokens": 3}, {"bf16": True, "report_to": ["wandb"]}):
        with pytest.raises(ConfigError):
            run(replace(prepared, sft=replace(prepared.sft, **fields)), ("sft",))
        assert (prepared.folder / "sft.partial/checkpoints/checkpoint-6/complete.json").is_file() and batch.is_file()
    steps.clear()
    monkeypatch.setattr(
        TreeTrainer, "_summed_loss", lambda self, *args: steps.append(self.state.global_step) or summed(self, *args)
    )
    fields = {"micro_batch": 2, "row_tokens": 128, "gradient_checkpointing": True}
    run(replace(prepared, sft=replace(prepared.sft, **fields)), ("sft",))
    assert steps[0] == 6 and batch.is_file()
    for ours, theirs in zip(losses(prepared.folder / "sft"), losses(alone), strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    manifest = read_json(prepared.folder / "sft/manifest.json")
    assert fields.items() <= manifest["config"]["sft"].items()
    run(prepared, ("sft",))  # as current as before
    assert read_json(prepared.folder / "sft/manifest.json") == manifest


def test_nothing_is_loaded_for_a_batch_that_does_not_split(prepared, monkeypatch):
    monkeypatch.setattr("minionerec.sft.train.starting_model", None)
    monkeypatch.setattr("minionerec.sft.plan.base_model", None)
    made = replace(prepared, sft=replace(prepared.sft, batch_size=10))
    for start in (lambda: run(made, ("sft",)), lambda: sft_plan.plans(made)):
        with pytest.raises(ConfigError, match=r"sft.batch_size 10 does not split"):
            start()


def test_from_pretrained_takes_a_saved_model_and_notices_when_it_changes(copy, tmp_path):
    base = tmp_path / "base"
    made = copy(base=base, epochs=1)
    index = SidIndex.load(made.folder / "sid", Dataset.load(made.folder / "data"))
    for seed in (0, 1):
        checkpoint.save(*scratch.create(["any text of theirs", "lamp chair table"], SIZES, seed), base)
        run(made, ("sft",))
        model, tokenizer = checkpoint.load(made.folder / "sft/model")
        assert checkpoint.sid_token_ids(tokenizer, index).shape == (48, 3)
        assert checkpoint.vocabulary_rows(model) == len(tokenizer) == len(checkpoint.load(base)[1]) + 24
        digests = read_json(made.folder / "sft/manifest.json")["inputs"]
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


def test_the_key_has_the_format_of_validations_only_if_it_changes_them(copy, tmp_path):
    base = tmp_path / "base"
    checkpoint.save(*scratch.create(["any text of theirs", "lamp chair table"], SIZES, 0), base)
    made = copy(base=base, best_metric="NDCG@10")

    def keys(weights):
        model = replace(made.model, dtype=weights)
        return {sft_recipe(replace(made, model=model, eval=replace(made.eval, dtype=dtype))).key for dtype in DTYPES}

    assert len(keys("float32")) == len(DTYPES)
    assert len(keys("bfloat16")) == 1  # no format is shorter, so none is validated through a copy


@pytest.mark.parametrize("train", ["full", "lora"])
def test_validation_in_bfloat16_is_the_evaluation_of_the_saved_model(copy, tmp_path, train):
    """The copy that is asked follows the model through adapters, too; the trained weights stay float32."""
    base = tmp_path / "base"
    checkpoint.save(*scratch.create(["any text of theirs", "lamp chair table"], SIZES, 0), base)
    made = copy(base=base, train=train, epochs=1, evaluations=2, best_metric="NDCG@10", valid_examples=None, learning_rate=5e-3)
    made = replace(made, eval=replace(made.eval, dtype="bfloat16", split="valid"))
    run(made, ("sft", "eval"))
    best = read_json(made.folder / "sft/manifest.json")["metrics"]["best_valid_NDCG@10"]
    assert read_json(made.folder / "eval/sft/manifest.json")["config"]["eval"]["dtype"] == "bfloat16"
    assert read_json(made.folder / "eval/sft/metrics.json")["sid"]["NDCG@10"]["value"] == pytest.approx(best, rel=1e-6)
    saved, _ = checkpoint.load(made.folder / "sft/model")
    assert best > 0 and saved.dtype == torch.float32
    assert not torch.equal(saved.model.embed_tokens.weight, saved.model.embed_tokens.weight.bfloat16().float())
