import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from minionerec.config import ModelConfig, SftConfig
from minionerec.errors import ConfigError
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.sft.train import build_trees, training_arguments
from minionerec.sft.trainer import TreeCollator, TreeTrainer
from minionerec.sft.weights import LossWeights
from minionerec.tree import CatalogTrie
from tests.small import random_dataset

TASKS = ["history_sid_to_sid", "title_to_sid", "sid_to_title"]
SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), SIZES, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return dataset, index, model, tokenizer


def slow_loss(model, branches, sids, normalise, smoothing):
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
            if normalise == "catalogue":
                total += weight * cross_entropy(row[legal], place, label_smoothing=smoothing)
            else:
                logprobs = row.log_softmax(-1)
                total -= weight * ((1 - smoothing) * logprobs[token] + smoothing * logprobs[legal].mean())
    return total


@pytest.mark.parametrize("normalise", ["vocabulary", "catalogue"])
@pytest.mark.parametrize(
    "options",
    [{}, {"smoothing": 0.2}, {"smoothing": 0.1, "level_weights": [4, 2, 1], "frequency_power": 0.5}],
    ids=["plain", "smooth", "weighted"],
)
def test_loss_and_gradients_equal_the_slow_way(parts, tmp_path, normalise, options):
    dataset, index, model, tokenizer = parts
    config = SftConfig(batch_size=12, micro_batch=12, normalise=normalise, **options)
    weights = LossWeights(config, dataset, index.levels)
    trees = build_trees(TASKS, dataset, index, tokenizer, split="train", stride=6, context=None, weights=weights)
    trees = trees[:6] + trees[-6:]
    branches = [branch for tree in trees for branch in tree]
    assert 0 < sum(branch.is_sid for branch in branches) < len(branches)
    labels = sum(len(branch.completion) for branch in branches)
    sids = checkpoint.sid_token_ids(tokenizer, index)
    expected = slow_loss(model.train(), branches, sids, normalise, config.smoothing) / labels
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
        normalise=normalise,
        smoothing=config.smoothing,
    )
    loss = trainer.compute_loss(model, collator(trees))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward()
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        assert (ours - parameter.grad).norm() <= 1e-5 * ours.norm() + 1e-9
    model.zero_grad()
    with torch.no_grad():
        plain = slow_loss(model, branches, sids, normalise, smoothing=0.0) / labels
    assert trainer.evaluate(trees)["eval_loss"] == pytest.approx(plain.item(), abs=1e-5)


def test_weights_follow_the_targets_frequency_and_keep_the_mean(parts):
    dataset, index, _, tokenizer = parts
    targets = dataset.train["target"].to_list()
    for power in (0.5, 1.0):
        weights = LossWeights(SftConfig(frequency_power=power), dataset, index.levels)
        trees = build_trees(TASKS, dataset, index, tokenizer, split="train", stride=1, context=None, weights=weights)
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
    trees = build_trees(TASKS, dataset, index, tokenizer, split="train", stride=1, context=None, weights=weights)
    assert TreeCollator(64)(trees[:1])["weights"].tolist() == [0.75, 2.25]
    assert TreeCollator(64)(trees[-1:])["weights"].unique().tolist() == [1]  # a title
    with pytest.raises(ConfigError, match="has 3 weights, but the SIDs have 4 levels"):
        LossWeights(SftConfig(level_weights=[0, 1, 3]), dataset, 4)
