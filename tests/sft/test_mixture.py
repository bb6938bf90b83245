"""SFT through the mixture with a cache: its loss, its gradients, its weights, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.artifacts import read_json
from minionerec.config import MixtureConfig, ModelConfig, SftConfig, SftMixtureConfig
from minionerec.model import checkpoint
from minionerec.pipeline import run
from minionerec.prompts.builder import Prompts
from minionerec.recommend.cache import (
    COUNTS,
    NOTHING,
    Buckets,
    Interactions,
    fit_weights,
    log_likelihood,
    make_components,
    own_interactions,
)
from minionerec.recommend.mixing import fitted
from minionerec.sft.arguments import training_arguments
from minionerec.sft.mixture import CachedTargets, ScoredTargets, TargetMixture
from minionerec.sft.trainer import TreeCollator, TreeTrainer
from minionerec.sft.trees import build_trees, examples_by_task, training_trees
from minionerec.sft.weights import LossWeights
from minionerec.sid.index import SidIndex
from minionerec.training.checkpoints import MarkComplete
from minionerec.tree import Branch, CatalogTrie
from tests.launch import forked
from tests.small import losses, random_dataset, untrained_model

TASKS = ["history_sid_to_sid", "history_title_to_sid"]
SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)
WEIGHTS = np.array([[1, 0, 0], [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])  # by bucket, of the model and two components


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    return dataset, index, *untrained_model(dataset, index, SIZES)


def random_targets(dataset, split="train"):
    """What two components might say: some targets impossible, some near certain."""
    rng = np.random.default_rng(3)
    rows = len(dataset.split(split))
    probabilities = rng.choice([0.0, 1e-6, 0.02, 0.5, 0.98], (rows, 2)).astype(np.float32)
    return CachedTargets(probabilities, rng.integers(0, len(WEIGHTS), rows))


def by_cache(branch):
    """What the cache adds to the probability of a branch's SID."""
    return sum(weight * float(cached) for weight, cached in zip(WEIGHTS[branch.bucket, 1:], branch.cached, strict=True))


def item_logprob(model, branch, sids, smoothing):
    """Log-probability of a branch's SID from a forward of the branch alone, each token over its legal siblings."""
    logits = model(torch.tensor([[*branch.prompt, *branch.completion]])).logits[0, len(branch.prompt) - 1 : -1].float()
    total = torch.zeros(())
    for step, (token, row) in enumerate(zip(branch.completion, logits, strict=True)):
        legal = sids[(sids[:, :step] == torch.tensor(branch.completion[:step])).all(1), step].unique()
        logprobs = row[legal].log_softmax(-1)
        total = total + (1 - smoothing) * logprobs[(legal == token).nonzero()[0, 0]] + smoothing * logprobs.mean()
    return total


def trees_of(parts, config, cached, stride=6):
    dataset, index, _, tokenizer = parts
    weights = LossWeights(config, dataset, index.levels)
    examples = examples_by_task(Prompts(dataset, index, tokenizer), TASKS, "train", stride)
    return build_trees(examples, stride, weights, cached).trees


def trainer_of(parts, config, trees, folder, of=None):
    trie = CatalogTrie.from_codes(checkpoint.sid_token_ids(parts[3], parts[1]))
    return TreeTrainer(
        model=parts[2],
        args=training_arguments(config, 0, folder, len(trees)),
        train_dataset=trees,
        eval_dataset=trees,
        data_collator=TreeCollator(64, trie),
        trie=trie,
        normalise_over="catalog",
        smoothing=config.smoothing,
        mixture=of,
    )


def gradients(model):
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9


def assert_trained_as(expected, parts, config, trees, folder, micro_batch):
    """The trainer's loss and gradients are those of a literal loss per label: of all trees at once, and in micro-batches."""
    model = parts[2]
    labels = sum(len(branch.completion) for tree in trees for branch in tree)
    model.zero_grad()
    expected.backward()
    literal = gradients(model)
    trainer = trainer_of(parts, config, trees, folder, TargetMixture(WEIGHTS))
    loss = trainer.compute_loss(model, trainer.data_collator(trees))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_equal(gradients(model), literal)
    for start in range(0, len(trees), micro_batch):
        batch = trainer.data_collator(trees[start : start + micro_batch])
        trainer.compute_loss(model, batch, num_items_in_batch=labels).backward()
    assert_equal(gradients(model), literal)


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.2}, {"frequency_power": 0.5}], ids=["plain", "smooth", "weighted"])
def test_loss_and_gradients_are_those_of_the_literal_mixture(parts, tmp_path, options):
    """autograd through -log((1 - l) p_LM + l p_C), example by example; in one batch and in micro-batches."""
    dataset, index, model, tokenizer = parts
    config = SftConfig(batch_size=12, micro_batch=12, normalise_over="catalog", **options)
    trees = trees_of(parts, config, random_targets(dataset))
    trees = trees[:6] + trees[-6:]
    branches = [branch for tree in trees for branch in tree]
    assert len(branches) > len(trees) and {branch.bucket for branch in branches} == {0, 1, 2}
    sids, labels = checkpoint.sid_token_ids(tokenizer, index), sum(len(branch.completion) for branch in branches)
    expected = torch.zeros(())
    for branch in branches:
        weight = 1.0 if branch.weights is None else branch.weights[0]
        probability = item_logprob(model.train(), branch, sids, config.smoothing).double().exp()
        expected = expected - weight * torch.log(WEIGHTS[branch.bucket, 0] * probability + by_cache(branch))
    assert_trained_as(expected / labels, parts, config, trees, tmp_path, 3)


def test_the_gradient_is_the_plain_one_weighted_by_the_models_responsibility(parts, tmp_path):
    dataset, index, model, tokenizer = parts
    config = SftConfig(batch_size=12, micro_batch=12, normalise_over="catalog")
    trees = trees_of(parts, config, random_targets(dataset))[:12]
    sids = checkpoint.sid_token_ids(tokenizer, index)
    trainer = trainer_of(parts, config, trees, tmp_path / "mixture", TargetMixture(WEIGHTS))
    trainer.compute_loss(model, trainer.data_collator(trees)).backward()
    through = gradients(model)
    weighted = []
    for tree in trees:
        weighted.append([])
        for branch in tree:
            mine = WEIGHTS[branch.bucket, 0] * item_logprob(model, branch, sids, 0).exp().item()
            responsibility = mine / (mine + by_cache(branch))
            weighted[-1].append(Branch(branch.prompt, branch.completion, [responsibility] * len(branch.completion), True))
    plain = trainer_of(parts, config, weighted, tmp_path / "plain")
    plain.compute_loss(model, plain.data_collator(weighted)).backward()
    assert_equal(gradients(model), through)


def test_without_a_share_of_the_cache_it_is_the_plain_loss(parts, tmp_path):
    dataset, _, model, _ = parts
    config = SftConfig(batch_size=12, micro_batch=12, normalise_over="catalog")
    cached, plain = (trees_of(parts, config, targets)[:12] for targets in (random_targets(dataset), None))
    trainer = trainer_of(parts, config, cached, tmp_path, TargetMixture(np.array([[1.0, 0, 0]] * 3)))
    loss = trainer.compute_loss(model, trainer.data_collator(cached))
    assert loss.item() == pytest.approx(trainer.compute_loss(model, trainer.data_collator(plain)).item(), abs=1e-6)


def test_items_that_share_a_sid_are_looked_up_together_and_a_training_row_not_in_itself(parts):
    """Row by row from the whole distribution, as it is without the row's own interaction."""
    dataset, index, _, _ = parts
    codes = index.codes.copy()
    codes[[3, 17]] = codes[4]
    shared = SidIndex(codes, index.codebook_sizes, index.dataset_digest)
    interactions = Interactions.of_dataset(dataset)
    components, buckets = make_components(COUNTS, interactions), Buckets(interactions)
    for split in ("train", "valid"):
        looked_up = CachedTargets.of(components, buckets, dataset, shared, split)
        frame = dataset.split(split)
        own = own_interactions(dataset) if split == "train" else np.full(len(frame), NOTHING)
        seen = set()
        for row, (history, target) in enumerate(zip(frame["history"].to_list(), frame["target"].to_list(), strict=True)):
            leaf = shared.items(codes[target])
            seen.add(len(leaf))
            for column, component in enumerate(components.values()):
                expected = component.probabilities([history], own[row : row + 1])[0, leaf].sum()
                assert looked_up.probabilities[row, column] == pytest.approx(expected, rel=1e-5, abs=1e-9)
            assert looked_up.buckets[row] == buckets.of([history], own[row : row + 1])[0]
        assert split == "valid" or seen == {1, 3}


def test_trees_look_up_their_own_rows(parts):
    """Also where rows are grouped into trees and a task's share leaves some out."""
    dataset, index, _, tokenizer = parts
    rows = len(dataset.train)
    numbered = CachedTargets((np.arange(rows)[:, None] / rows).astype(np.float32), np.arange(rows) % 21)
    sids = checkpoint.sid_token_ids(tokenizer, index).tolist()
    config = SftConfig(task_shares={TASKS[1]: 0.5}, tasks=TASKS, normalise_over="catalog", history_stride=6)
    trees = training_trees(config, 0, Prompts(dataset, index, tokenizer), numbered).trees
    targets = dataset.train["target"].to_list()
    found = [round(branch.cached[0] * rows) for tree in trees for branch in tree]
    assert sorted(found)[0] == 0 and len(found) == rows + round(rows / 2) and set(found) == set(range(rows))
    for tree in trees:
        for branch in tree:
            row = round(branch.cached[0] * rows)
            assert [*branch.completion] == sids[targets[row]] and branch.bucket == row % 21


def test_a_validation_fits_the_weights_and_reports_the_mixtures_loss(parts, tmp_path):
    dataset, index, model, tokenizer = parts
    config = SftConfig(batch_size=12, micro_batch=4, normalise_over="catalog")
    trees = trees_of(parts, config, random_targets(dataset), stride=1)[:30]
    mixture = TargetMixture(np.array([[1.0, 0, 0]] * 3), fitted=True)
    trainer = trainer_of(parts, config, trees, tmp_path, mixture)
    metrics = trainer.evaluate()
    sids, branches = checkpoint.sid_token_ids(tokenizer, index), [branch for [branch] in trees]
    with torch.no_grad():
        own = np.array([item_logprob(model.eval(), branch, sids, 0).item() for branch in branches])
    columns = np.column_stack([np.exp(own), [branch.cached for branch in branches]])
    buckets = np.array([branch.bucket for branch in branches])
    weights = fit_weights(columns, buckets, bucket_count=3)
    assert mixture.weights == pytest.approx(weights, abs=1e-4)
    labels = sum(len(branch.completion) for branch in branches)
    assert metrics["eval_loss"] == pytest.approx(-log_likelihood(columns, buckets, weights).sum() / labels, abs=1e-5)
    assert metrics["eval_model_loss"] == pytest.approx(-own.sum() / labels, abs=1e-5)
    assert metrics["eval_cache_weight"] == pytest.approx(1 - weights[buckets, 0].mean(), abs=1e-4)
    assert metrics["eval_loss"] < metrics["eval_model_loss"]


@pytest.mark.parametrize("per_bucket", [True, False])
def test_training_and_decoding_fit_the_same_weights(parts, per_bucket):
    dataset, rng = parts[0], np.random.default_rng(5)
    interactions = Interactions.of_dataset(dataset)
    components, buckets = make_components(COUNTS[:2], interactions), Buckets(interactions)
    histories = dataset.valid["history"].to_list()
    columns = rng.random((len(histories), 3))
    decoding = fitted(columns, buckets, components, histories, per_bucket, 5.0)
    training = TargetMixture(np.ones((21, 3)) / 3, True, per_bucket, 5.0)
    training.fit(ScoredTargets(np.log(columns[:, 0]), columns[:, 1:], buckets.of(histories)))
    np.testing.assert_allclose(training.weights, decoding.weights.values, rtol=1e-9)
    assert (training.weights == training.weights[0]).all() != per_bucket


FIELDS = {"tasks": ["history_sid_to_sid"], "normalise_over": "catalog", "mixture": SftMixtureConfig("em"), "epochs": 5}


def mixed(made, components=COUNTS, validation=False, **fields):
    """A prepared run that trains through the mixture with some components."""
    settings = MixtureConfig(components=list(components), validation=validation)
    evaluation = replace(made.eval, normalise_over="catalog")
    return replace(made, mixture=settings, eval=evaluation, sft=replace(made.sft, **{**FIELDS, **fields}))


def test_interrupted_and_resumed_it_has_the_same_bytes(copy, monkeypatch):
    """The weights that a validation has fitted are read back: they weigh every step until the next one."""
    undisturbed, made = mixed(copy("undisturbed"), dropout=0.1), mixed(copy(), dropout=0.1)
    run(undisturbed, ("sft",))
    on_step_end = MarkComplete.on_step_end

    def interrupt(self, args, state, control, **_):
        if state.global_step == 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(MarkComplete, "on_step_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(made, ("sft",))
    monkeypatch.setattr(MarkComplete, "on_step_end", on_step_end)
    state, *_ = made.folder.glob("sft.partial/checkpoints/checkpoint-*/mixture.json")
    weights = np.array(read_json(state)["weights"])
    assert weights.shape == (21, 5) and (weights[:, 0] < 1).all()
    run(made, ("sft",))
    for name in ("log.jsonl", "model/model.safetensors"):
        assert (made.folder / "sft" / name).read_bytes() == (undisturbed.folder / "sft" / name).read_bytes()
    rows = [row for row in losses(made.folder / "sft") if "eval_loss" in row]
    assert all(row["eval_loss"] < row["eval_model_loss"] and 0 < row["eval_cache_weight"] < 1 for row in rows)


def test_two_processes_give_the_single_process_losses(prepared, copy):
    alone, made = mixed(copy("alone"), epochs=2), copy()
    run(alone, ("sft",))
    options = ["--config", str(prepared.folder.parent / "small.yaml"), "--out", made.out, "--sft.micro_batch", "2"]
    options += ["--sft.tasks", "[history_sid_to_sid]", "--sft.normalise_over", "catalog", "--sft.mixture.weights", "em"]
    options += ["--sft.epochs", "2", "--eval.normalise_over", "catalog", "--mixture.components", f"[{', '.join(COUNTS)}]"]
    forked(2, "sft/train.py", *options)
    logs = losses(made.folder / "sft"), losses(alone.folder / "sft")
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert metrics["devices"] == 2 and metrics["tasks"].keys() == {"history_sid_to_sid"} and len(logs[0]) == len(logs[1])
    for ours, theirs in zip(*logs, strict=True):
        for name in theirs.keys() & {"loss", "eval_loss", "eval_model_loss", "eval_cache_weight", "grad_norm"}:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3)


def test_a_fixed_weight_stays_and_lists_may_be_ranked_with_a_mixture(copy):
    """Text among the components: its vectors are the run's."""
    fields = {"mixture": SftMixtureConfig("fixed", 0.25), "epochs": 1, "best_metric": "NDCG@10", "valid_examples": 16}
    made = mixed(copy(), ("popularity", "markov", "text"), validation=True, **fields)
    run(made, ("sft",))
    rows = [row for row in losses(made.folder / "sft") if "eval_loss" in row]
    assert [row["eval_cache_weight"] for row in rows] == pytest.approx([0.25] * len(rows))
    assert all(row["eval_loss"] < row["eval_model_loss"] and "eval_NDCG@10" in row for row in rows)
    manifest = read_json(made.folder / "sft/manifest.json")
    assert manifest["config"]["mixture"]["components"] == ["popularity", "markov", "text"]
    assert manifest["config"]["component_texts"]["encoder"] == "tfidf"
