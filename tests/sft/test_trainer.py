import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback

from minionerec.config import ModelConfig, SftConfig
from minionerec.errors import ConfigError, TrainingError
from minionerec.model import checkpoint
from minionerec.prompts.builder import Prompts
from minionerec.sft.arguments import training_arguments
from minionerec.sft.trainer import TreeCollator, TreeTrainer, tree_tokens
from minionerec.sft.trees import build_trees, examples_by_task
from minionerec.sft.weights import LossWeights
from minionerec.tree import Branch, CatalogTrie
from tests.small import random_dataset, untrained_model

TASKS = ["history_sid_to_sid", "title_to_sid", "sid_to_title"]
SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    return dataset, index, *untrained_model(dataset, index, SIZES)


def slow_loss(model, branches, sids, normalise_over, smoothing):
    """Label by label from a forward of each example alone; torch's cross-entropy smooths over the classes given."""
    total = torch.zeros(())
    for branch in branches:
        logits = model(torch.tensor([[*branch.prompt, *branch.completion]])).logits[0, len(branch.prompt) - 1 : -1].float()
        for step, (token, row) in enumerate(zip(branch.completion, logits, strict=True)):
            weight = 1.0 if branch.weights is None else branch.weights[step]
            if not branch.is_sid:
                total += weight * cross_entropy(row, torch.tensor(token))
                continue
            legal = sids[(sids[:, :step] == torch.tensor(branch.completion[:step])).all(1), step].unique()
            place = (legal == token).nonzero()[0, 0]
            if normalise_over == "catalog":
                total += weight * cross_entropy(row[legal], place, label_smoothing=smoothing)
            else:
                logprobs = row.log_softmax(-1)
                total -= weight * ((1 - smoothing) * logprobs[token] + smoothing * logprobs[legal].mean())
    return total


@pytest.mark.parametrize("normalise_over", ["vocabulary", "catalog"])
@pytest.mark.parametrize(
    "options",
    [{}, {"smoothing": 0.2}, {"smoothing": 0.1, "level_weights": [4, 2, 1], "frequency_power": 0.5}],
    ids=["plain", "smooth", "weighted"],
)
def test_loss_and_gradients_equal_the_slow_way(parts, tmp_path, normalise_over, options):
    dataset, index, model, tokenizer = parts
    config = SftConfig(batch_size=12, micro_batch=12, normalise_over=normalise_over, **options)
    weights = LossWeights(config, dataset, index.levels)
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train", 6), 6, weights).trees
    trees = trees[:6] + trees[-6:]
    branches = [branch for tree in trees for branch in tree]
    assert 0 < sum(branch.is_sid for branch in branches) < len(branches)
    labels = sum(len(branch.completion) for branch in branches)
    sids = checkpoint.sid_token_ids(tokenizer, index)
    expected = slow_loss(model.train(), branches, sids, normalise_over, config.smoothing) / labels
    model.zero_grad()
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    trie = CatalogTrie.from_codes(sids)
    collator = TreeCollator(64, trie)
    trainer = TreeTrainer(
        model=model,
        args=training_arguments(config, 0, tmp_path, len(trees)),
        train_dataset=trees,
        eval_dataset=trees,
        data_collator=collator,
        trie=trie,
        normalise_over=normalise_over,
        smoothing=config.smoothing,
    )
    loss = trainer.compute_loss(model, collator(trees))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        assert (ours - parameter.grad).norm() <= 1e-5 * ours.norm() + 1e-9
    model.zero_grad()
    with torch.no_grad():
        plain = slow_loss(model, branches, sids, normalise_over, smoothing=0.0) / labels
    assert trainer.evaluate(trees)["eval_loss"] == pytest.approx(plain.item(), abs=1e-5)


def test_weights_follow_the_targets_frequency_and_keep_the_mean(parts):
    dataset, index, _, tokenizer = parts
    targets = dataset.train["target"].to_list()
    for power in (0.5, 1.0):
        weights = LossWeights(SftConfig(frequency_power=power), dataset, index.levels)
        trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train"), 1, weights).trees
        histories, others = trees[: len(targets)], trees[len(targets) :]
        found = np.array([branch.weights[0] for tree in histories for branch in tree])
        assert found.mean() == pytest.approx(1)
        assert found * [targets.count(target) ** power for target in targets] == pytest.approx(
            found[0] * targets.count(targets[0]) ** power
        )
        assert all(branch.weights is None for tree in others for branch in tree)


def test_levels_without_weight_are_no_labels(parts):
    dataset, index, _, tokenizer = parts
    weights = LossWeights(SftConfig(level_weights=[0, 1, 3]), dataset, index.levels)
    trees = build_trees(examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train"), 1, weights).trees
    assert TreeCollator(64)(trees[:1])["weights"].tolist() == [0.75, 2.25]
    assert TreeCollator(64)(trees[-1:])["weights"].unique().tolist() == [1]  # a title
    with pytest.raises(ConfigError, match="has 3 weights, but the SIDs have 4 levels"):
        LossWeights(SftConfig(level_weights=[0, 1, 3]), dataset, 4)


def synthetic(count, seed=0):
    """Trees of one branch, and a small model: nothing that depends on prompts or tokenizers."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(count):
        start = int(rng.integers(40))
        walk = [(start + step) % 40 + 2 for step in range(int(rng.integers(4, 12)))]
        trees.append([Branch(walk[:-3], walk[-3:], is_sid=True)])
    return trees


def tiny_model(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=48, num_key_value_heads=2, tie_word_embeddings=True, **sizes))


def tree_trainer(folder, trees, held_out=None, model=None, **fields):
    config = SftConfig(**{"batch_size": 8, "micro_batch": 4, "epochs": 4, "learning_rate": 3e-3, "evaluations": 2, **fields})
    arguments = training_arguments(config, 3, folder, len(trees), max(map(tree_tokens, trees)))
    arguments.logging_steps = 1
    return TreeTrainer(
        model=model or tiny_model(),
        args=arguments,
        train_dataset=trees,
        eval_dataset=held_out or trees[:10],
        data_collator=TreeCollator(32),
    )


def curve(trainer):
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row], dict(trainer.model.state_dict())


def pad(trees):
    rows = [[*branch.prompt, *branch.completion] for tree in trees for branch in tree]
    prompts = [len(branch.prompt) for tree in trees for branch in tree]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    place = torch.arange(width)[None]
    labels = ids.masked_fill((mask == 0) | (place < torch.tensor(prompts)[:, None]), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_step_is_that_of_the_plain_trainer(tmp_path, schedule):
    """transformers' own Trainer on padded batches of the same examples, with accumulation: losses, gradients, weights."""
    trees = synthetic(40)
    ours, weights = curve(tree_trainer(tmp_path / "ours", trees, schedule=schedule))
    arguments = tree_trainer(tmp_path / "theirs", trees, schedule=schedule).args
    plain = Trainer(model=tiny_model(), args=arguments, train_dataset=trees, eval_dataset=trees[:10], data_collator=pad)
    theirs, expected = curve(plain)
    assert len(ours) == len(theirs) == 20
    for own, other in zip(ours, theirs, strict=True):
        assert own["learning_rate"] == other["learning_rate"]
        assert own["loss"] == pytest.approx(other["loss"], abs=2e-5)
        assert own["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], atol=1e-4, rtol=0)


def test_the_curve_is_the_stored_one(tmp_path):
    """A refactoring may not change it. To store another, on purpose: the message prints it; put it into the file."""
    trees = synthetic(40)
    plain, _ = curve(tree_trainer(tmp_path / "plain", trees))
    weighted = [[replace(branch, weights=[2, 1, 0.5])] for [branch] in trees]
    others, _ = curve(tree_trainer(tmp_path / "weighted", weighted, gradient_checkpointing=True, schedule="linear"))
    found = {"plain": [row["loss"] for row in plain], "weighted": [row["loss"] for row in others]}
    stored = json.loads((Path(__file__).parent / "curves.json").read_text())
    for name, losses in stored.items():
        assert found[name] == pytest.approx(losses, rel=1e-3), json.dumps(found)
    assert found.keys() == stored.keys()


def test_gradient_checkpointing_recomputes_and_changes_nothing(tmp_path):
    trees = synthetic(24)
    results, calls = [], []
    for on in (False, True):
        trainer = tree_trainer(tmp_path / str(on), trees, gradient_checkpointing=on, epochs=2)
        calls.append(0)
        layer = trainer.model.model.layers[0].input_layernorm  # recomputing stops at the last tensor that is needed

        def count(*_):
            calls[-1] += torch.is_grad_enabled()

        layer.register_forward_hook(count)
        results.append(curve(trainer))
    assert calls[1] == 2 * calls[0] > 0
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert (ours["loss"], ours["grad_norm"]) == (theirs["loss"], theirs["grad_norm"])
    assert all(torch.equal(results[0][1][name], value) for name, value in results[1][1].items())


def test_a_loss_that_is_no_number_stops_with_the_batch(tmp_path):
    trees = synthetic(24)
    trainer = tree_trainer(tmp_path, trees, epochs=2)

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            if state.global_step == 2:
                with torch.no_grad():
                    model.get_input_embeddings().weight[:] = torch.nan

    trainer.add_callback(Break())
    path = tmp_path / "not-finite-step-3-process-0.safetensors"
    with pytest.raises(TrainingError, match=rf"loss of step 3 is not finite.*{re.escape(str(path))}"):
        trainer.train()
    kept = load_file(path)
    sequences = {tuple([*branch.prompt, *branch.completion][:-1]) for [branch] in trees}
    assert len(kept["0.labels"]) == 4 * 3 and kept["0.input_ids"].shape == kept["0.position_ids"].shape
    assert any(tuple(row[: len(one)].tolist()) == one for row in kept["0.input_ids"] for one in sequences)
    with pytest.raises(TrainingError, match=r"loss of validation after step 2 is not finite.* so training diverges\. Lower"):
        trainer.evaluate()
    assert (tmp_path / "not-finite-validation-after-step-2-process-0.safetensors").is_file()


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0], ids=["clipped", "not clipped"])
def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path, max_grad_norm):
    """The loss of the step is finite; its micro-batches are kept, and the weights stay as the step before left them."""
    trainer = tree_trainer(tmp_path / "run", synthetic(40), epochs=2, max_grad_norm=max_grad_norm)
    calls, weights = [], []

    def spoil(gradient):
        calls.append(gradient)
        return gradient * torch.nan if len(calls) == 5 else gradient  # the first of the two micro-batches of step 3

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            weights[:] = [parameter.detach().clone() for parameter in model.parameters()]

    trainer.model.model.layers[0].mlp.down_proj.weight.register_hook(spoil)
    trainer.add_callback(Remember())
    trainer.failed = tmp_path / "failed"
    path = trainer.failed / "not-finite-step-3-process-0.safetensors"
    with pytest.raises(TrainingError, match=rf"gradient of step 3 is not finite.*{re.escape(str(path))}"):
        trainer.train()
    assert all(torch.equal(old, new) for old, new in zip(weights, trainer.model.parameters(), strict=True))
    kept = load_file(path)
    assert len(kept["0.labels"]) == len(kept["1.labels"]) == 4 * 3 and "2.labels" not in kept


def exhaust(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def in_the_first_step(trainer):
    forward = trainer.model.forward
    return (
        trainer.model,
        "forward",
        lambda *args, **kwargs: torch.empty(1 << 55) if trainer.model.training else forward(*args, **kwargs),
    )


def in_the_validation(trainer):
    forward = trainer.model.forward
    return (
        trainer.model,
        "forward",
        lambda *args, **kwargs: forward(*args, **kwargs) if trainer.model.training else torch.empty(1 << 55),
    )


def in_a_beam_search(trainer):
    return trainer, "evaluator", exhaust


def in_the_optimiser(trainer):
    trainer.create_optimizer()
    return trainer.optimizer, "step", exhaust


def at_a_checkpoint(trainer):
    return trainer, "_optimizer_state", exhaust


def before_the_first_step(trainer):
    return trainer, "create_optimizer", exhaust


@pytest.mark.parametrize(
    ("spot", "message"),
    [
        (in_the_first_step, r"at step 1 with micro-batches of 4 trees \(.*allocate.*\)\. Lower sft.micro_batch"),
        (in_the_validation, r"in the validation after step 6 \(.*\)\. Lower sft.micro_batch, which validation uses"),
        (in_a_beam_search, r"in the validation after step 6 .* eval.num_beams"),
        (in_the_optimiser, r"in the optimiser, at step 1 .* whatever the micro-batch"),
        (at_a_checkpoint, r"while the checkpoint of step 6 was written .* main memory"),
        (before_the_first_step, r"while the training was set up .* whatever the micro-batch"),
    ],
    ids=lambda made: getattr(made, "__name__", ""),
)
def test_out_of_memory_names_the_settings(tmp_path, monkeypatch, spot, message):
    trainer = tree_trainer(tmp_path, synthetic(24))
    monkeypatch.setattr(*spot(trainer))
    with pytest.raises(TrainingError, match=f"^Out of memory {message}"):
        trainer.train()


def test_micro_batches_by_tokens_keep_the_global_batch(tmp_path):
    trees = synthetic(24)
    longest = max(map(tree_tokens, trees))
    plain, _ = curve(tree_trainer(tmp_path / "plain", trees, micro_batch=8))
    for budget, micro in ((longest, 1), (3 * longest, 2), (4 * longest, 4), (100 * longest, 8)):
        trainer = tree_trainer(tmp_path / str(budget), trees, micro_batch=8, micro_tokens=budget)
        arguments = trainer.args
        assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (micro, 8 // micro)
    few, _ = curve(tree_trainer(tmp_path / "few", trees, micro_batch=8, micro_tokens=3 * longest))
    for ours, theirs in zip(few, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    with pytest.raises(ConfigError, match=rf"sft.micro_tokens is 3, but the longest training example has {longest} tokens"):
        tree_trainer(tmp_path / "none", trees, micro_tokens=3)
    assert tree_tokens([Branch([1, 2, 3], [4, 5]), Branch([1, 2], [3, 9]), Branch([1], [7])]) == 7


def test_curves_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["trackio"])
    with pytest.raises(ConfigError, match=r"sft.report_to names wandb, .* is not installed \(pip install wandb\); .*: trackio"):
        training_arguments(SftConfig(report_to=["trackio", "wandb"]), 0, tmp_path, 200)
    assert training_arguments(SftConfig(report_to=["trackio"]), 0, tmp_path, 200).report_to == ["trackio"]
    assert training_arguments(SftConfig(), 0, tmp_path, 200).report_to == []
