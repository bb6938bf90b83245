"""Each benchmark of the tree engine at a tiny size: it runs, both sides give the same, and its checks can fail."""

import argparse
import subprocess

import numpy as np
import pytest
import torch

from tests.benchmarks.conftest import FOLDER
from tests.small import random_dataset
from tests.tree.conftest import random_codes


def test_decode_gives_the_peers_lists(script):
    decode = script("decode")
    (ours, lists), (peer, peer_lists), (_, whole) = (decode.measure(side, "tiny", 2, 12, 5, 0) for side in decode.SIDES)
    assert decode.check(lists, peer_lists) <= 1e-4
    assert decode.overlap(lists["sids"], whole["sids"]) == 1
    assert ours["tokens"] == ours["floor"] == 12 + 2 * 5
    assert peer["tokens"] == 5 * (12 + 2)
    with pytest.raises(SystemExit, match="The lists differ: overlap"):
        lists["sids"][0, 0] = 0
        decode.check(lists, peer_lists)


@pytest.mark.parametrize(
    ("name", "flags", "row"),
    [
        ("decode", "--model tiny --batch 1 --settings 9:3", "| 9 | 3 |"),
        ("grpo_step", "--model tiny --prompts 9 --per-step 1 --generations 3 --steps 1 --profile", "| 9 |"),
        ("catalog_scale", "--model tiny --items 500 --prompt 9 --beams 3", "| 500 |"),
        ("yes_no", "--model tiny --users 3 --candidates 4 --history 5", "| 4 | 5 |"),
        ("sft_step", "--examples 16 --hidden 32 --stride 6 --packed-tokens 64", "| packed-plain |"),
    ],
)
def test_tables(script, monkeypatch, capsys, name, flags, row):
    """Whole scripts; what would be processes of their own runs here."""
    benchmark = script(name)
    if name == "sft_step":
        monkeypatch.setattr(benchmark, "industrial", random_dataset)

    def run(command, **_):
        benchmark.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script("setting").subprocess, "run", run)
    benchmark.main([*flags.split(), "--repeats", "1", "--seconds", "0"])
    assert capsys.readouterr().out.splitlines()[-1].startswith(row)


def test_tiger_gives_generates_lists_and_ends_with_an_error_if_it_is_too_slow(script, capsys, monkeypatch):
    """So small that its time says nothing: either it does not count, or no time would do."""
    tiger, tiny = script("tiger"), ["--users", "2", "--beams", "3", "--repeats", "1", "--faster"]
    tiger.main([*tiny, "0"])
    assert "| ours, CPU ms a user | generate | times faster |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"The search is \S+ times as fast as generate, not 1e\+09 times\."):
        tiger.main([*tiny, "1e9"])
    monkeypatch.setattr(tiger, "AGREE", -1.0)
    with pytest.raises(SystemExit, match="The lists differ, or a score by"):
        tiger.main([*tiny, "0"])


def test_oracle_compares_passes_and_ends_with_an_error_if_their_scores_differ(script, capsys, monkeypatch):
    oracle, tiny = script("oracle"), ["--items", "60", "--repeats", "1", "--tokens", "64"]
    oracle.main(tiny)
    rows = [row.split(" | ")[:2] for row in capsys.readouterr().out.splitlines()[3:]]
    assert [tokens for _, tokens in rows] == ["budget", "64"] * 2
    right = oracle.exact_scores.prefix_scores

    def wrong(prompts, most):
        return [scores + 0.001 * (most() == 64) for scores in right(prompts, most)]

    monkeypatch.setattr(oracle.exact_scores, "prefix_scores", wrong)
    with pytest.raises(SystemExit, match=r"T5, Beauty's shape: scores in passes of 64 tokens differ by 1\.0e-03"):
        oracle.main(tiny)


def test_catalog_logprobs_compares_rows_and_ends_with_an_error_if_their_gradients_differ(script, capsys, monkeypatch):
    benchmark = script("catalog_logprobs")
    monkeypatch.setattr(benchmark, "industrial_codes", lambda: (random_codes(np.random.default_rng(0), 300, 3, 8), "random"))
    monkeypatch.setattr(benchmark.catalog_logprobs, "PER_PROMPT_TOKEN", 0)
    benchmark.main(["--repeats", "1", "--prefixes", "16"])
    rows = [row.split(" | ")[0] for row in capsys.readouterr().out.splitlines()[-2:]]
    assert rows[0].startswith("| 1 of ") and int(rows[1].split()[1]) > 1
    assert benchmark.catalog_logprobs.ROW_PREFIXES == 256
    right, whole = benchmark.catalog_logprobs.catalog_logprobs, benchmark.ONE_ROW

    def steeper(*arguments, **options):
        """In several rows the same values, but twice the gradient."""
        found = right(*arguments, **options)
        return found if whole == benchmark.catalog_logprobs.ROW_PREFIXES else 2 * found - found.detach()

    monkeypatch.setattr(benchmark.catalog_logprobs, "catalog_logprobs", steeper)
    with pytest.raises(SystemExit, match=r"In [2-9]\d* rows log-probabilities differ by \S+ and a gradient by 1\.0e\+00"):
        benchmark.main(["--repeats", "1", "--prefixes", "16"])
    assert benchmark.catalog_logprobs.ROW_PREFIXES == 256


def test_filters_compares_its_views(script, capsys):
    filters = script("filters")
    filters.main(["--items", "500", "--requests", "3", "--denied", "40", "--beams", "5", "--repeats", "1"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 500 |")
    trie = filters.CatalogTrie.from_codes(filters.random_codes(500))
    with pytest.raises(SystemExit, match="The views differ at level"):
        filters.check([trie, filters.masked(trie, [[3]])], 1, 500, seed=0)


@pytest.mark.slow
def test_a_process_of_its_own(script):
    file = FOLDER / "catalog_scale.py"
    options = ["--only", "ours", "--model", "tiny", "--items", "500", "--prompt", "9", "--beams", "3", "--seconds", "0"]
    figures, tensors = script("setting").in_fresh_process(str(file), options)
    assert figures["peak"] >= figures["build peak"] >= figures["before"] > 0
    assert not tensors
    with pytest.raises(SystemExit, match=r"ended with 2:[\s\S]*not a whole number above 0"):
        script("setting").in_fresh_process(str(file), ["--only", "ours", "--beams", "many"])


def test_grpo_step_equals_stock_trl(script):
    grpo_step = script("grpo_step")
    sizes = {"model": "tiny", "prompts": [10], "per_step": 2, "generations": 4, "steps": 1}
    sizes |= {"micro_prompts": None, "peer_micro_prompts": 1, "profile": False}
    options = argparse.Namespace(**sizes, run=None, device="cpu", bf16=False)
    ours, peer = (grpo_step.measure(side, options) for side in grpo_step.SIDES)
    assert set(grpo_step.differences(ours, peer)) == set(grpo_step.AGREE)
    assert peer[0]["kl"] > 0
    assert peer[1]["gradients"].norm() > 0
    ours[1]["gradients"][0] += 1
    with pytest.raises(SystemExit, match="The steps differ"):
        grpo_step.differences(ours, peer)
    ours[1]["sids"][0, 0] += 1
    with pytest.raises(SystemExit, match="The rollouts differ"):
        grpo_step.differences(ours, peer)


def test_sft_step_has_the_peers_gradient(script, monkeypatch):
    sft_step = script("sft_step")
    monkeypatch.setattr(sft_step, "industrial", random_dataset)
    sizes = {"examples": 48, "stride": 6, "hidden": 32, "micro": 24, "row_tokens": 64, "padded_micro": 8, "packed_tokens": 64}
    options = argparse.Namespace(**sizes, seconds=0, run=None, model=None, device="cpu", bf16=False)
    found = {side: sft_step.measure(side, options) for side in sft_step.SIDES}
    for side in sft_step.SIDES:
        assert sft_step.apart(found[side], found["padded"], 1e-5) <= 1e-5
    tokens = {side: figures["tokens"] for side, (figures, _) in found.items()}
    assert tokens["ours"] < tokens["packed"] == found["ours"][0]["given"] < tokens["sorted"] < tokens["padded"]
    found["ours"][1]["gradient"] *= 1.001
    with pytest.raises(SystemExit, match="The steps differ"):
        sft_step.apart(found["ours"], found["padded"], 1e-4)


def test_sft_step_says_which_data_it_needs(script, tmp_path):
    with pytest.raises(SystemExit, match="needs train/Industrial_and_Scientific"):
        script("sft_step").industrial(tmp_path)


def test_catalog_scale_checks_its_lists(script):
    catalog_scale = script("catalog_scale")
    figures, _ = catalog_scale.measure(1000, "tiny", 12, 5, 0)
    assert 0 < figures["bytes"] <= 40
    codes = catalog_scale.random_codes(1000)
    assert len({tuple(row) for row in codes.tolist()}) == 1000
    tokens = torch.from_numpy(codes[:5]).long() + 7 + 256 * torch.arange(3)
    trie = catalog_scale.CatalogTrie.from_codes(codes + 7)
    found = catalog_scale.BeamResult(
        tokens[None], torch.zeros(1, 5), torch.arange(5)[None], torch.ones(1, dtype=torch.bool), torch.zeros(1)
    )
    allowed = (codes[:, None] == codes[:5]).all(-1).any(-1)
    catalog_scale.check(found, trie, codes, 7, allowed)
    with pytest.raises(SystemExit, match="invalid or repeated"):
        catalog_scale.check(found, trie, codes, 7, ~allowed)


def test_without_the_data_a_random_catalog_stands_in(script, tmp_path):
    setting = script("setting")
    codes, name = setting.industrial_codes(tmp_path)
    assert name.startswith("a random catalog")
    assert codes.shape == (3686, 3)
    assert len({tuple(row) for row in codes.tolist()}) > 3000
