import numpy as np
import pytest
import torch

from minionerec.config import Config, EvalConfig, ModelConfig
from minionerec.eval.decode import SplitDecoder
from minionerec.eval.metrics import ranks
from minionerec.model import base, checkpoint, scratch
from minionerec.model.dropout import add_dropout
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.recommend.recommender import Recommender
from minionerec.statistics.ranking import per_user
from minionerec.training.evaluator import RankingEvaluator
from minionerec.training.rounded_copy import RoundedCopy, copy_bytes
from tests.small import random_dataset


@pytest.fixture
def trained():
    """A model as a training has it, its tokenizer, and prompts."""
    dataset, index = random_dataset()
    sizes = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    add_dropout(model, 0.5)
    return model, tokenizer, Prompts(dataset, index, tokenizer)


def train_a_little(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.randn_like(parameter).exp())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_is_the_saved_model_loaded_in_that_format(trained, dtype, tmp_path):
    model, tokenizer, _ = trained
    rounded = RoundedCopy(model, dtype)
    places = [parameter.data_ptr() for parameter in rounded.model.parameters()]
    model.train()
    train_a_little(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded.refresh()
    checkpoint.save(model, tokenizer, tmp_path)
    loaded, _ = checkpoint.load(tmp_path, dtype)
    found, expected = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (rounded.model, loaded))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert rounded.model.get_output_embeddings().weight is rounded.model.get_input_embeddings().weight  # tied
    assert places == [parameter.data_ptr() for parameter in rounded.model.parameters()]
    assert model.training and not rounded.model.training  # so nothing is dropped in the copy
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_item_texts_are_those_of_the_saved_model(tmp_path):
    """What the model has computed of its float32 vectors is computed again of the rounded ones."""
    dataset, index = random_dataset()
    config = ModelConfig(
        hidden_size=16, intermediate_size=24, layers=1, heads=2, vocabulary=300, text_input=True, text_output=True
    )
    vectors = np.random.default_rng(1).normal(size=(30, 12)).astype(np.float32)
    model, tokenizer = base.base_model(config, index, tokenizer_corpus(dataset), 0, vectors=lambda: vectors)
    assert model.model.texts.paths.leaf_vectors.dtype == torch.float32
    rounded = RoundedCopy(model, "bfloat16")
    checkpoint.save(model, tokenizer, tmp_path)
    loaded, _ = checkpoint.load(tmp_path, "bfloat16")
    found, expected = (m.model.texts.paths.leaf_vectors for m in (rounded.model, loaded))
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    assert model.model.texts.paths.leaf_vectors.dtype == torch.float32


def test_validation_is_the_evaluation_in_that_format(trained, tmp_path):
    model, tokenizer, prompts = trained
    config = EvalConfig(num_beams=20, batch_size=3, split="valid", dtype="bfloat16")
    evaluator = RankingEvaluator.in_training(Config(eval=config), model, prompts, None, "MRR@5")
    first = evaluator()
    train_a_little(model)
    second = evaluator()
    checkpoint.save(model, tokenizer, tmp_path)
    loaded, _ = checkpoint.load(tmp_path, "bfloat16")
    decoder = SplitDecoder(Recommender(loaded, prompts, config=config))
    expected = per_user(ranks(list(decoder.predict(range(len(decoder))))))
    assert second == {name: pytest.approx(expected[name].mean()) for name in second} != first


def test_no_copy_where_the_format_is_no_shorter(trained):
    model, *_ = trained
    assert RoundedCopy.if_shorter(model, "float32") is None and copy_bytes(model, "float32") == 0
    assert RoundedCopy.if_shorter(model.bfloat16(), "float32") is None and RoundedCopy.if_shorter(model, "float16") is None
    model.float()
    assert copy_bytes(model, "bfloat16") == 2 * sum(parameter.numel() for parameter in model.parameters())
