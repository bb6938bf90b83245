from dataclasses import replace

import pytest
import torch

from minionerec.config import EvalConfig, ModelConfig
from minionerec.errors import DataError
from minionerec.eval.decode import SplitDecoder
from minionerec.eval.metrics import ranks
from minionerec.model import checkpoint, scratch
from minionerec.prompts.builder import Prompts, tokenizer_corpus
from minionerec.recommend.recommender import Recommender
from minionerec.statistics.ranking import per_user
from minionerec.training.evaluator import RankingEvaluator
from tests.small import random_dataset


@pytest.fixture(scope="module")
def recommender():
    dataset, index = random_dataset()
    sizes = ModelConfig(hidden_size=32, intermediate_size=48, layers=1, heads=2, vocabulary=400)
    model, tokenizer = scratch.create(tokenizer_corpus(dataset), sizes, 0)
    checkpoint.add_sid_tokens(model, tokenizer, index, 0)
    return Recommender(model, Prompts(dataset, index, tokenizer))


@pytest.mark.parametrize("exclude_history", [False, True])
def test_validation_is_the_evaluations_figures_on_evenly_spaced_examples(recommender, exclude_history):
    config = EvalConfig(num_beams=20, batch_size=3, split="test", exclude_history=exclude_history)
    evaluator = RankingEvaluator(recommender, config, 7, "MRR@5")
    decoder = SplitDecoder(Recommender(recommender.model, recommender.prompts, config=replace(config, split="valid")))
    whole = ranks(list(decoder.predict(range(len(decoder)))))
    rows = [number * len(whole) // 7 for number in range(7)]
    expected = {name: values[rows].mean() for name, values in per_user(whole).items()}
    first = evaluator()
    assert first == pytest.approx({name: expected[name] for name in ("HR@1", "HR@10", "NDCG@10", "MRR@5")})  # lists of 20
    assert first == evaluator() and 0 < first["NDCG@10"] < 1
    assert evaluator.primary_metric == "MRR@5" and evaluator.greater_is_better
    everything = RankingEvaluator(recommender, config, None, "HR@1")()
    assert everything["HR@10"] == pytest.approx(per_user(whole)["HR@10"].mean())


def test_it_is_the_model_as_it_is_now(recommender):
    evaluator = RankingEvaluator(recommender, EvalConfig(num_beams=20, batch_size=3), 7, "MRR@5")
    first = evaluator()
    before = {name: parameter.clone() for name, parameter in recommender.model.named_parameters()}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in recommender.model.parameters():
            parameter.mul_(torch.randn_like(parameter))
        assert evaluator() != first
        for name, parameter in recommender.model.named_parameters():
            parameter.copy_(before[name])
    assert evaluator() == first


def test_nothing_to_validate_on(recommender):
    prompts = recommender.prompts
    empty = replace(prompts, dataset=replace(prompts.dataset, valid=prompts.dataset.valid.clear()))
    with pytest.raises(DataError, match=r"the valid split is empty.*sft.best_metric loss and rl.evaluations 0"):
        RankingEvaluator(Recommender(recommender.model, empty), EvalConfig(), None, "HR@1")
