"""The reference's constraint, and what generation defaults make of it, on a toy."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minionerec.artifacts import write_artifact
from minionerec.model import checkpoint
from minionerec.tree import CatalogTrie, beam_search, left_pad
from tests.rl.toy import policy_folder
from tests.small import random_dataset

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5]]


@pytest.fixture
def defaults(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("generation_defaults")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    model, tokenizer = checkpoint.load(str(policy_folder(tmp_path_factory.mktemp("policy"))))
    return model.eval(), checkpoint.sid_token_ids(tokenizer, random_dataset()[1])


def test_without_the_defaults_generate_gives_our_decoders_lists(defaults, parts):
    model, tokens = parts
    ids, mask = left_pad(PROMPTS, 0)
    ours = beam_search(model, ids, mask, trie=CatalogTrie.from_codes(tokens), num_beams=10, normalise="vocabulary").tokens
    assert (defaults.generate(model, ids, mask, tokens.tolist(), 10) == ours).all()


def test_with_the_defaults_other_lists_come_out(defaults, parts):
    model, tokens = parts
    ids, mask = left_pad(PROMPTS, 0)
    torch.manual_seed(0)
    plain = defaults.generate(model, ids, mask, tokens.tolist(), 10)
    sampled = [defaults.generate(model, ids, mask, tokens.tolist(), 10, **defaults.DEFAULTS) for _ in range(2)]
    assert sampled[0].shape == plain.shape
    assert (sampled[0] != plain).any() and (sampled[0] != sampled[1]).any()


def test_the_constraint_gives_way_behind_a_dead_end(defaults):
    constraint = defaults.ReferenceConstraint([[3, 5], [3, 6], [4, 5]], prompt_length=1)
    scores = constraint(torch.tensor([[9, 3], [9, 7]]), torch.zeros(2, 8))
    flat = math.log(1 / 8)
    assert scores[0].tolist() == pytest.approx([flat + defaults.PENALTY * (token not in (5, 6)) for token in range(8)])
    assert scores[1].tolist() == pytest.approx([flat + defaults.PENALTY] * 8)


def test_a_run_that_cannot_be_asked(defaults, tmp_path):
    command = [str(tmp_path), "--config", "ml-100k"]
    with pytest.raises(SystemExit, match=r"sft.*manifest.json: not found. The run needs a finished SFT model"):
        defaults.main(command)
    with write_artifact(tmp_path / "sft", stage="sft", key="", config={"sft": {"normalise": "catalogue"}}, inputs={}, seed=0):
        pass
    with pytest.raises(SystemExit, match=r"trained with sft.normalise catalogue; the reference's needs vocabulary"):
        defaults.main(command)


def test_places(defaults):
    lists = torch.tensor([[[1, 2], [1, 3]], [[1, 2], [1, 3]]])
    found = defaults.places(lists, torch.tensor([[1, 3], [2, 2]]))
    assert found.tolist() == [1, np.inf]
