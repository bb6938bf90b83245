"""A small untrained recommender whose scores differ by more than rounding."""

from dataclasses import replace

import polars as pl
import pytest
import torch

from minionerec.config import EvalConfig, ModelConfig
from minionerec.prompts.builder import Prompts
from minionerec.recommend.recommender import Recommender
from tests.eval.samples import DATASET, INDICES
from tests.small import untrained_model

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="session")
def make():
    """A function that makes a recommender of 20 items in 14 SIDs; its arguments are fields of `eval`."""
    categories = pl.Series("categories", ["Lamps, Home" if item % 3 else "Cups, Set of 2, Home" for item in range(20)])
    dataset = replace(DATASET, catalog=DATASET.catalog.with_columns(categories))
    index = INDICES["shared"]
    model, tokenizer = untrained_model(dataset, index, SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    prompts = Prompts(dataset, index, tokenizer)
    return lambda **fields: Recommender(model, prompts, config=EvalConfig(**{"batch_size": 5, **fields}))


@pytest.fixture(scope="session")
def recommender(make):
    return make()
