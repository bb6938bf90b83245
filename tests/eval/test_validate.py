from dataclasses import replace

import pytest
import torch

from minionerec.config import Config, EvalConfig, ModelConfig
from minionerec.errors import DataError
from minionerec.eval.metrics import ranks
from minionerec.eval.predict import decode
from minionerec.eval.validate import validator
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.statistics.ranking import per_user
from tests.small import random_dataset


@pytest.fixture(scope="module")
def parts():
    dataset, index = random_dataset()
    sizes = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return model.eval(), Prompts(dataset, index, tokenizer)


def test_validation_is_the_evaluations_figures_on_evenly_spread_examples(parts):
    model = parts[0]
    config = Config(eval=EvalConfig(num_beams=20, batch_size=3, split="test"))
    measure = validator(*parts, config, 7, "MRR@5")
    whole = ranks(list(decode(*parts, replace(config.eval, split="valid"))))
    chosen = [place * len(whole) // 7 for place in range(7)]
    expected = {name: values[chosen].mean() for name, values in per_user(whole).items()}
    first = measure()
    assert first == pytest.approx({name: expected[name] for name in ("HR@1", "HR@10", "HR@50", "NDCG@10", "MRR@5")})
    assert first == measure() and 0 < first["NDCG@10"] < 1
    everything = validator(*parts, config, None, "HR@1")()
    assert everything["HR@10"] == pytest.approx(per_user(whole)["HR@10"].mean())
    torch.manual_seed(0)
    with torch.no_grad():  # it is the model as it is now, not a copy
        for parameter in model.parameters():
            parameter.mul_(torch.randn_like(parameter))
    assert measure() != first


def test_nothing_to_validate_on(parts):
    model, prompts = parts
    empty = replace(prompts, dataset=replace(prompts.dataset, valid=prompts.dataset.valid.clear()))
    with pytest.raises(DataError, match=r"the valid split is empty.*sft.best_metric loss and rl.evaluations 0"):
        validator(model, empty, Config(), None, "HR@1")
