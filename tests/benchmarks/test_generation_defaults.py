"""The released code's constraint, and what generation defaults make of it, on a toy."""

import math

import pytest
import torch

from minionerec.artifacts import Recipe
from minionerec.eval.lists import RankedLists
from minionerec.eval.metrics import ranks
from minionerec.model import checkpoint
from minionerec.pipeline import run
from minionerec.tree import CatalogTrie, beam_search, left_pad
from tests.rl.toy import policy_folder
from tests.small import config, random_dataset

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5]]


@pytest.fixture
def defaults(script):
    return script("generation_defaults")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    model, tokenizer = checkpoint.load(str(policy_folder(tmp_path_factory.mktemp("policy"))))
    return model.eval(), checkpoint.sid_token_ids(tokenizer, random_dataset()[1])


def test_without_the_defaults_generate_gives_our_decoders_lists(defaults, parts):
    model, tokens = parts
    ids, mask = left_pad(PROMPTS, 0)
    ours = beam_search(model, ids, mask, trie=CatalogTrie.from_codes(tokens), num_beams=10, normalise_over="vocabulary").tokens
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
    constraint = defaults.ReleasedConstraint([[3, 5], [3, 6], [4, 5]], prompt_length=1)
    scores = constraint(torch.tensor([[9, 3], [9, 7]]), torch.zeros(2, 8))
    flat = math.log(1 / 8)
    assert scores[0].tolist() == pytest.approx([flat + defaults.PENALTY * (token not in (5, 6)) for token in range(8)])
    assert scores[1].tolist() == pytest.approx([flat + defaults.PENALTY] * 8)


def test_a_run_that_cannot_be_asked(defaults, tmp_path):
    command = [str(tmp_path), "--config", "ml-100k"]
    with pytest.raises(SystemExit, match=r"sft.*manifest.json: not found. The run needs a finished SFT model"):
        defaults.main(command)
    with Recipe("sft", tmp_path / "sft", {"sft": {"normalise_over": "catalog"}}, {}, 0).write():
        pass
    with pytest.raises(SystemExit, match=r"trained with sft.normalise_over catalog; the released code's needs vocabulary"):
        defaults.main(command)


def test_what_is_only_asked_for_is_printed(defaults, tmp_path, capsys):
    defaults.main([str(tmp_path), "--config", "ml-100k", "--print_config"])
    assert "num_beams: 50" in capsys.readouterr().out


def test_asking_a_run(defaults, tmp_path):
    prepared = config(tmp_path, sft={"normalise_over": "vocabulary", "epochs": 1}, eval={"normalise_over": "vocabulary"})
    run(prepared, ("data", "sid", "sft", "eval"))
    found = defaults.ask(prepared, 1000, 1, (defaults.OURS, defaults.DEFAULTED))
    lists = RankedLists.read(prepared.folder / "eval/sft/predictions.jsonl")
    assert found.ranks[defaults.OURS].tolist() == ranks(lists).tolist()
    assert list(found.ranks) == [defaults.OURS, defaults.DEFAULTED] and sorted(found.units) == list(range(40))
    again = defaults.ask(prepared, 1000, 1, (defaults.OURS, defaults.DEFAULTED))
    assert again.ranks[defaults.DEFAULTED].tolist() == found.ranks[defaults.DEFAULTED].tolist()
    assert 0 <= found.invalid < 1 and found.values(defaults.OURS).shape == (2, 40)
    few = defaults.ask(prepared, 4, 1, (defaults.OURS,))
    assert few.ranks[defaults.OURS].tolist() == ranks(lists)[::10].tolist()
