"""The model card: what it says of the base model, and of how it was validated."""

from dataclasses import replace

import pytest
import yaml

from minionerec.artifacts import Recipe
from minionerec.config import Config, ModelConfig, RlConfig, SftConfig
from minionerec.model.pretrained import PUBLISHED
from minionerec.training.card import write_card
from tests.small import random_dataset

METRICS = {"best_valid_NDCG@10": 0.25}


@pytest.fixture
def card(tmp_path):
    dataset, index = random_dataset()

    def write(stage="sft", metrics=METRICS, **fields):
        config = Config(out=str(tmp_path / "run"), **fields)
        write_card(tmp_path, stage, config, dataset, index, metrics)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        return yaml.safe_load(text.split("---\n")[1]), text

    return write


def pretrained_model(path):
    return ModelConfig(init="from_pretrained", path=str(path))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_no_local_path_is_published(card, tmp_path, kind):
    path = tmp_path / "of mine"
    path.mkdir() if kind == "folder" else path.with_suffix(".gguf").write_bytes(b"GGUF")
    head, text = card(model=pretrained_model(path if kind == "folder" else path.with_suffix(".gguf")))
    assert "base_model" not in head and "of mine" not in text and str(tmp_path) not in text
    assert "a local model, which is not published here" in text and "derive from a local model: its licence" in text
    assert "path: a local path" in text


def test_names_that_others_know_are(card):
    head, text = card(model=pretrained_model("Qwen/Qwen2.5-0.5B"))
    assert head["base_model"] == "Qwen/Qwen2.5-0.5B" and "derive from Qwen/Qwen2.5-0.5B: its licence" in text
    name = "smollm2-135m"  # a name of this package, no hub's
    head, text = card(model=pretrained_model(name))
    assert "base_model" not in head and f"{name}: {PUBLISHED[name].what}" in text and "smollm2-135m (Apache-2.0)" in text
    head, text = card()
    assert "base_model" not in head and "none: a small Qwen2, trained from scratch\n" in text and "derive" not in text


def test_the_base_of_rl_is_that_of_the_sft_model_even_if_it_is_gone(card, tmp_path):
    model = replace(ModelConfig(), init="from_pretrained", path="gone/model").__dict__
    with Recipe("sft", tmp_path / "run/sft", {"model": model}, {"model": "0" * 64}, 0).write():
        pass
    head, text = card("rl", {}, model=pretrained_model("other/model"))
    assert "base_model" not in head and "gone" not in text and "other/model" not in text
    assert "The model of `sft/` in the same run; its base: a local model" in text
    with Recipe("sft", tmp_path / "run/sft", {"model": model}, {}, 0, replace=True).write():
        pass
    assert card("rl", {}, model=pretrained_model("other/model"))[0]["base_model"] == "gone/model"


@pytest.mark.parametrize(
    ("sft", "count"),
    [
        ({"max_examples": 5, "best_metric": "loss"}, 5),
        ({"max_examples": 5, "best_metric": "NDCG@10"}, 5),
        ({"max_examples": 5, "best_metric": "NDCG@10", "valid_examples": 3}, 3),
        ({"best_metric": "NDCG@10", "valid_examples": 3}, 3),
        ({}, len(random_dataset()[0].valid)),
    ],
)
def test_validated_examples(card, sft, count):
    assert f"means over {count} examples" in card(sft=SftConfig(**sft))[1]


def test_rl_is_validated_on_its_own_number(card, tmp_path):
    with Recipe("sft", tmp_path / "run/sft", {}, {}, 0).write():
        pass
    metrics = {"best valid NDCG@10": 0.5}
    assert "means over 4 examples" in card("rl", metrics, rl=RlConfig(valid_examples=4), sft=SftConfig(max_examples=2))[1]


@pytest.mark.parametrize(
    ("rl", "title"),
    [
        ({}, "GRPO with ranking rewards"),
        ({"rewards": {"rule": 1.0}}, "GRPO"),
        ({"objective": "sdpo", "add_target": True, "rollouts": "uniform", "rewards": {"rule": 1.0}}, "S-DPO"),
    ],
)
def test_the_title_of_rl_is_its_objective(card, tmp_path, rl, title):
    with Recipe("sft", tmp_path / "run/sft", {}, {}, 0).write():
        pass
    assert f"# run: {title}\n" in card("rl", {}, name="run", rl=RlConfig(**rl))[1]


def test_rows_that_sft_has_left_out_are_in_its_recipe(card):
    rl = RlConfig(holdout="last", holdout_share=0.25)
    assert "holdout:\n  rows: last\n  share: 0.25\n" in card(rl=rl)[1] and "holdout" not in card()[1]


def test_how_to_load_a_model_of_our_own_architecture(card):
    assert "or transformers' AutoModelForCausalLM and AutoTokenizer" in card()[1]
    _, text = card(model=ModelConfig(text_input=True))
    assert "AutoModel" not in text and "transformers alone does not know the architecture" in text
