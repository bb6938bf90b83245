"""A small untrained recommender whose scores differ by more than rounding.

What imports torch is imported where it is used: this folder has fast tests.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from minionerec.artifacts import Recipe
from minionerec.config import EvalConfig, ModelConfig, SidConfig
from minionerec.pipeline import run
from minionerec.prompts.record import prompts_section
from tests import small
from tests.eval.samples import DATASET, INDICES
from tests.small import untrained_model

if TYPE_CHECKING:
    from minionerec.recommend.recommender import Recommender

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


@pytest.fixture(scope="session")
def make():
    """A function that makes a recommender of 20 items in 14 SIDs; its arguments are fields of `eval`."""
    import torch

    from minionerec.prompts.builder import Prompts
    from minionerec.recommend.recommender import Recommender

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


def write_run(folder: Path, recommender: "Recommender", sid: SidConfig | None = None) -> Path:
    """A finished run whose model is a recommender's, which nobody trained; its SIDs say of item vectors what `sid` does."""
    from minionerec.model import checkpoint

    prompts, digests = recommender.prompts, {}

    def write(stage, config, save):
        recipe = Recipe(stage, folder / stage, config, dict(digests), 0)
        with recipe.write() as draft:
            save(draft.path)
        digests[stage] = recipe.finished().digest

    def save_model(path):
        checkpoint.save(recommender.model, prompts.tokenizer, path / "model")
        (path / "model/README.md").write_text("# a model\n\n## Use\n\nit\n\n## Licence\n\nNone at all.\n")

    write("data", {}, prompts.dataset.save)
    write("sid", {"sid": asdict(sid or SidConfig(encoder="tfidf"))}, prompts.index.save)
    prompted = prompts_section(prompts.config, ["history_sid_to_sid"])
    write("sft", {"sft": {"tasks": ["history_sid_to_sid"]}, "prompts": prompted}, save_model)
    write("eval/sft", {"eval": asdict(recommender.config)}, lambda path: None)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of both training stages, and its configuration."""
    config = small.config(tmp_path_factory.mktemp("run"), sft={"epochs": 1}, rl={"max_examples": 8, "evaluations": 0})
    run(config, ("data", "sid", "sft", "rl", "eval"))
    return config
