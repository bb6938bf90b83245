"""SFT through the mixture with a cache of a model that has its items' texts: literal gradients, two processes, a whole run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.artifacts import read_json
from minionerec.config import MixtureConfig, ModelConfig, SftConfig, SftMixtureConfig
from minionerec.model import base, checkpoint
from minionerec.pipeline import run
from minionerec.prompts.builder import tokenizer_corpus
from minionerec.recommend.cache import fit_weights, log_likelihood
from minionerec.sft.mixture import TargetMixture
from minionerec.tree import Branch, CatalogTrie
from minionerec.tree.leaf_component import mixed
from tests.launch import forked
from tests.model.test_item_text import mixture_of_all, plain_logprob
from tests.sft.test_mixture import (
    FIELDS,
    WEIGHTS,
    assert_equal,
    assert_trained_as,
    by_cache,
    gradients,
    item_logprob,
    random_targets,
    trainer_of,
)
from tests.sft.test_mixture import trees_of as all_trees
from tests.small import losses, random_dataset

SIZES = {"hidden_size": 16, "intermediate_size": 24, "layers": 2, "heads": 2, "vocabulary": 300}
TEXTS = {"text_input": True, "text_output": True}


@pytest.fixture(scope="module", params=[TEXTS, {"text_output": True}, {"text_input": True}], ids=["both", "output", "input"])
def parts(request):
    dataset, index = random_dataset()
    vectors = np.random.default_rng(1).normal(size=(len(dataset.catalog), 12)).astype(np.float32)
    config = ModelConfig(**SIZES, **request.param)
    model, tokenizer = base.base_model(config, index, tokenizer_corpus(dataset), 0, vectors=lambda: vectors)
    with torch.no_grad():  # weights that matter
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dataset, index, model, tokenizer


def trees_of(parts, config):
    """Both tasks: one shows items by their SIDs, whose vectors are read, the other one by their titles."""
    trees = all_trees(parts, config, random_targets(parts[0]))
    return trees[:3] + trees[-3:]


def model_of_all(model, trie, prompt, sids):
    """The model's probability of every SID of the catalog, from a plain text each."""
    if model.has_leaf_component:
        return mixture_of_all(model, trie, prompt)
    return torch.stack([plain(model, prompt, sid, sids) for sid in trie.sids.tolist()]).exp()


def plain(model, prompt, sid, sids, smoothing=0.0):
    """Log-probability of a SID as the model writes it, from a plain text."""
    return item_logprob(model, Branch(prompt, sid), sids, smoothing)


def test_loss_and_gradients_are_those_of_the_literal_mixture_over_the_catalog(parts, tmp_path):
    """autograd through -log of an entry of (1 - l) ((1 - g) p_codes + g p_text) + l p_cache, which is there for every item."""
    _, index, model, tokenizer = parts
    config = SftConfig(batch_size=6, micro_batch=6, normalise_over="catalog")
    trees = [tree[:2] for tree in trees_of(parts, config)]
    branches = [branch for tree in trees for branch in tree]
    sids, labels = checkpoint.sid_token_ids(tokenizer, index), sum(len(branch.completion) for branch in branches)
    trie = CatalogTrie.from_codes(sids)
    expected = torch.zeros(())
    for branch in branches:
        every = model_of_all(model, trie, [*branch.prompt], sids).double()
        assert every.sum().item() == pytest.approx(1, abs=1e-4)
        leaf = trie.sids.tolist().index([*branch.completion])
        expected = expected - torch.log(WEIGHTS[branch.bucket, 0] * every[leaf] + by_cache(branch))
    assert_trained_as(expected / labels, parts, config, trees, tmp_path, 2)  # of which the last show no SID


@pytest.mark.parametrize("options", [{"smoothing": 0.2}, {"frequency_power": 0.5}], ids=["smooth", "weighted"])
def test_smoothing_and_weights(parts, tmp_path, options):
    """Smoothed is what the model writes code by code; examples weigh as they do without a mixture."""
    _, index, model, tokenizer = parts
    config = SftConfig(batch_size=6, micro_batch=6, normalise_over="catalog", **options)
    trees = trees_of(parts, config)
    branches = [branch for tree in trees for branch in tree]
    sids, labels = checkpoint.sid_token_ids(tokenizer, index), sum(len(branch.completion) for branch in branches)
    trie, expected = CatalogTrie.from_codes(sids), torch.zeros(())
    for branch in branches:
        whole = plain(model, branch.prompt, branch.completion, sids, config.smoothing)
        if model.has_leaf_component:
            whole = mixed(whole, *plain_logprob(model, trie, [*branch.prompt], [*branch.completion])[1:])
        weight = 1.0 if branch.weights is None else branch.weights[0]
        expected = expected - weight * torch.log(WEIGHTS[branch.bucket, 0] * whole.exp() + by_cache(branch))
    model.zero_grad()
    (expected / labels).backward()
    literal = gradients(model)
    trainer = trainer_of(parts, config, trees, tmp_path, TargetMixture(WEIGHTS))
    loss = trainer.compute_loss(model, trainer.data_collator(trees))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item() / labels, abs=1e-5)
    assert_equal(gradients(model), literal)


def test_a_validation_fits_the_weights_to_what_the_whole_model_says(parts, tmp_path):
    _, index, model, tokenizer = parts
    config = SftConfig(batch_size=6, micro_batch=3, normalise_over="catalog")
    trees = [[branch] for tree in trees_of(parts, config) for branch in tree[:2]]
    mixture = TargetMixture(np.array([[1.0, 0, 0]] * 3), fitted=True)
    metrics = trainer_of(parts, config, trees, tmp_path, mixture).evaluate()
    branches, sids = [branch for [branch] in trees], checkpoint.sid_token_ids(tokenizer, index)
    trie, places = CatalogTrie.from_codes(sids), CatalogTrie.from_codes(sids).sids.tolist()
    with torch.no_grad():
        model.eval()
        own = [model_of_all(model, trie, [*b.prompt], sids)[places.index([*b.completion])].item() for b in branches]
    columns = np.column_stack([own, [branch.cached for branch in branches]])
    buckets = np.array([branch.bucket for branch in branches])
    weights = fit_weights(columns, buckets, bucket_count=3)
    assert mixture.weights == pytest.approx(weights, abs=1e-4)
    labels = sum(len(branch.completion) for branch in branches)
    assert metrics["eval_loss"] == pytest.approx(-log_likelihood(columns, buckets, weights).sum() / labels, abs=1e-5)
    assert metrics["eval_model_loss"] == pytest.approx(-np.log(own).sum() / labels, abs=1e-5)


def test_every_layer_has_a_gradient_in_every_micro_batch(parts, tmp_path):
    """As DDP needs it: of zeros where a batch shows no SID, or asks for none."""
    _, index, model, tokenizer = parts
    config = SftConfig(batch_size=6, micro_batch=6, normalise_over="catalog")
    text = tokenizer("any text of theirs").input_ids
    sid = checkpoint.sid_token_ids(tokenizer, index)[3].tolist()
    trees = [[Branch(text[:2], text[2:])], [Branch(text, sid, is_sid=True)], [Branch(sid, text)]]
    trainer = trainer_of(parts, config, trees * 3, tmp_path)
    for tree in trees:
        model.zero_grad()
        trainer.compute_loss(model, trainer.data_collator([tree])).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.zero_grad()


OPTIONS = "--model.text_input true --model.text_output true --sft.normalise_over catalog --eval.normalise_over catalog "
OPTIONS += "--eval.oracle_examples 0 --sft.micro_batch 2 --sft.epochs 1 "


def two_and_one(made, prepared, folder, options, name):
    """The logs of two processes and of one, which must agree."""
    arguments = ["--config", str(prepared.folder.parent / "small.yaml"), "--out", made.out, *options.split()]
    forked(2, "sft/train.py", *arguments)
    logs = losses(made.folder / "sft"), losses(folder / "sft")
    assert read_json(made.folder / "sft/manifest.json")["metrics"]["devices"] == 2 and len(logs[0]) == len(logs[1])
    for ours, theirs in zip(*logs, strict=True):
        for value in theirs.keys() & {"loss", "eval_loss", "eval_model_loss", "eval_cache_weight", "grad_norm"}:
            assert ours[value] == pytest.approx(theirs[value], rel=2e-3), (name, value)


def with_texts(made, components=(), **fields):
    evaluation = replace(made.eval, normalise_over="catalog", oracle_examples=0)
    sft = replace(made.sft, **{"normalise_over": "catalog", "epochs": 1, **fields})
    mixture = MixtureConfig(components=[*components])
    return replace(made, model=replace(made.model, **TEXTS), mixture=mixture, eval=evaluation, sft=sft)


def test_two_processes_give_the_single_process_losses(prepared, copy):
    fixed = {"mixture": SftMixtureConfig("fixed", 0.3), "epochs": 1, "evaluations": 2}
    alone = with_texts(copy("alone"), ("popularity", "markov", "text"), **{**FIELDS, **fixed})
    run(alone, ("sft",))
    options = "--sft.tasks [history_sid_to_sid] --sft.mixture.weights fixed --sft.mixture.weight 0.3 --sft.evaluations 2 "
    options += "--mixture.components [popularity,markov,text]"
    two_and_one(copy(), prepared, alone.folder, OPTIONS + options, "mixture")
    rows = [row for row in losses(alone.folder / "sft") if "eval_loss" in row]
    assert all(row["eval_loss"] < row["eval_model_loss"] for row in rows)
    assert [row["eval_cache_weight"] for row in rows] == pytest.approx([0.3] * len(rows)) and len(rows) == 2


@pytest.mark.slow
def test_two_processes_whose_micro_batches_may_show_and_ask_no_sid(prepared, copy):
    """DDP waits for the gradient of every layer: those of the texts have one, of zeros, in every micro-batch."""
    alone = with_texts(copy("alone"), tasks=["history_sid_to_sid", "title_to_sid", "sid_to_title"])
    run(alone, ("sft",))
    options = OPTIONS + "--sft.tasks [history_sid_to_sid,title_to_sid,sid_to_title]"
    two_and_one(copy(), prepared, alone.folder, options, "tasks")


def test_evaluation_asks_the_same_mixture(copy):
    """What the last validation said of the valid targets is what the fitted mixture says of them."""
    made = with_texts(copy(), ("popularity", "markov"), **{**FIELDS, "epochs": 1, "evaluations": 1})
    run(made, ("sft", "mixture"))
    [row] = [row for row in losses(made.folder / "sft") if "eval_loss" in row]
    fitted = read_json(made.folder / "mixture/sft/manifest.json")["metrics"]
    levels = made.sid.levels
    assert fitted["log-likelihood"] == pytest.approx(-levels * row["eval_loss"], rel=1e-3)
    assert fitted["of the model alone"] == pytest.approx(-levels * row["eval_model_loss"], rel=1e-3)
