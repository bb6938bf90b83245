from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.config import Config, ModelConfig, ScoreConfig, SidConfig
from minionerec.distributed import distributed_state
from minionerec.errors import ConfigError, DataError
from minionerec.eval.pair_leaderboard import read_leaderboard, write_leaderboard
from minionerec.model import checkpoint, scratch
from minionerec.prompts.pairs import PairPrompts, PairWords
from minionerec.prompts.plain_text import PlainText
from minionerec.scoring import yes_no
from minionerec.scoring.titles import titles
from minionerec.scoring.yes_no import score_zero_shot, yes_over_no
from minionerec.training.scored_pairs import read_scores, row_name
from minionerec.tree import pack
from tests.data.test_pairs import rated_csv
from tests.scoring.data import planted, save
from tests.tree.conftest import tiny

YES, NO = 7, 9


def random_prompts(rng, users=3, candidates=4, suffix=3):
    """Prompts of users: a common beginning, a candidate of any length, a common end."""
    prompts = []
    for _ in range(users):
        prefix = rng.integers(0, 40, rng.integers(1, 30)).tolist()
        end = rng.integers(0, 40, suffix).tolist()
        prompts += [[*prefix, *rng.integers(0, 40, rng.integers(1, 6)).tolist(), *end] for _ in range(candidates)]
    return prompts


def one_by_one(model, prompts):
    """The obvious way: each prompt alone, softmax over the vocabulary, log p(YES) - log p(NO)."""
    logits = [model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1) for prompt in prompts]
    return torch.stack([values[YES] - values[NO] for values in logits])


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "gemma"])
def test_scores_on_trees_are_those_one_by_one(kind):
    model, rng = tiny(kind), np.random.default_rng(0)
    prompts = [*random_prompts(rng), *random_prompts(rng, users=1, candidates=1, suffix=1), [3]]
    with torch.no_grad():
        for row_tokens in (1, 50, 1000):
            torch.testing.assert_close(
                yes_over_no(model, prompts, (YES, NO), row_tokens), one_by_one(model, prompts), atol=1e-5, rtol=1e-5
            )
    answered = torch.sigmoid(one_by_one(model, prompts[:1]))
    chances = model(torch.tensor(prompts[:1])).logits[0, -1].softmax(-1)[[YES, NO]]
    torch.testing.assert_close(answered[0], chances[0] / chances.sum())  # RecBench's p


def test_gradients_on_trees_are_those_one_by_one():
    prompts, labels = random_prompts(np.random.default_rng(1)), torch.tensor([1.0, 0, 0, 1] * 3)
    gradients = []
    for scores in (lambda model: yes_over_no(model, prompts, (YES, NO), 64), lambda model: one_by_one(model, prompts)):
        model = tiny()
        torch.nn.functional.binary_cross_entropy_with_logits(scores(model), labels).backward()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model that has random weights and knows the words of the prompts."""
    pairs, folder = planted("genre", users=20, items=16), tmp_path_factory.mktemp("model") / "tiny lm"
    words = [*vars(PairWords.of(ScoreConfig())).values(), "\nAnswer (YES or NO): YES", "\nAnswer (YES or NO): NO"]
    sizes = ModelConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2, vocabulary=400)
    language_model, tokenizer = scratch.create([*pairs.catalog["title"].to_list(), *words * 20], sizes, 0)
    checkpoint.save(language_model, tokenizer, folder)
    return folder


@pytest.fixture
def run(tmp_path, model):
    save(planted("genre", users=20, items=16, candidates=6), tmp_path / "run")
    score = ScoreConfig(model=str(model), batch_users=3, shard_users=4, resamples=60)
    return Config(name="planted", out=str(tmp_path / "run"), sid=SidConfig(encoder="tfidf"), score=score)


def test_every_pair_of_a_split_gets_the_score_of_its_own_prompt(run, model):
    manifest, fresh = score_zero_shot(run)
    assert fresh and manifest.stage.startswith("scoring/zero-shot-tiny-lm-")
    recorded, frame = read_scores(run.folder / manifest.stage)
    language_model, tokenizer = checkpoint.load(str(model))
    pairs = planted("genre", users=20, items=16, candidates=6)
    prompts = PairPrompts(tokenizer, PairWords.of(run.score), pairs.catalog["title"].to_list())
    answers = prompts.answers()
    assert frame.select("user", "candidate", "label").equals(pairs.test.select("user", "candidate", "label"))
    with torch.no_grad():
        for row, score in zip(pairs.test.iter_rows(named=True), frame["score"], strict=True):
            [prompt] = prompts.of_user(row["history"], [row["candidate"]]).tokens
            logits = language_model(torch.tensor([prompt])).logits[0, -1]
            assert score == pytest.approx(float(logits[answers[0]] - logits[answers[1]]), abs=1e-5)
    assert recorded.metrics["kind"] == "model" and recorded.metrics["users_with_cut_history"] == 0
    assert not score_zero_shot(run)[1]
    write_leaderboard(run)
    assert [entry["label"] for entry in read_leaderboard(run.folder)["entries"]] == ["tiny lm, zero-shot"]


def test_an_interrupted_scoring_resumes_and_sizes_change_no_score(run, monkeypatch):
    whole, calls = yes_no.yes_over_no, []

    def stops(model, prompts, answers, row_tokens):
        calls.append(len(prompts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(model, prompts, answers, row_tokens)

    monkeypatch.setattr(yes_no, "yes_over_no", stops)
    with pytest.raises(KeyboardInterrupt):
        score_zero_shot(run)
    manifest, _ = score_zero_shot(run)
    # 10 users in shards of 4: 2 + 2 + 1 batches; the first shard was stored, the second is scored again.
    assert calls == [18, 6, 18, 6, 18, 6, 12]
    first = read_scores(run.folder / manifest.stage)[1]
    other = replace(run, score=replace(run.score, batch_users=10, shard_users=100, row_tokens=16))
    assert not score_zero_shot(other)[1]  # such sizes are in no key
    scores = read_scores(run.folder / score_zero_shot(replace(other, seed=8))[0].stage)[1]
    np.testing.assert_allclose(first["score"], scores["score"], atol=1e-5)


def test_cut_prompts_are_counted_and_what_does_not_fit_is_refused(run):
    short = replace(run, score=replace(run.score, max_tokens=70))
    manifest, _ = score_zero_shot(short)
    assert 0 < manifest.metrics["users_with_cut_history"] <= 10
    with pytest.raises(ConfigError, match="with one item of the history left, and 20 may be read"):
        score_zero_shot(replace(run, score=replace(run.score, max_tokens=20)))
    assert Manifest.load(run.folder / manifest.stage).digest == manifest.digest  # nothing is lost


def test_items_without_titles_and_titles_with_tokens(run, model):
    pairs = planted("genre", users=20, items=16)
    _, tokenizer = checkpoint.load(str(model), weights=False)
    named = pairs.catalog.with_columns(title=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(" ")).otherwise("title"))
    with pytest.raises(DataError, match="Item 'i3' has no title"):
        titles(replace(pairs, catalog=named), PlainText(tokenizer))
    spoilt = pairs.catalog.with_columns(title=pl.lit(f"x {tokenizer.eos_token}"))
    shown = titles(replace(pairs, catalog=spoilt), PlainText(tokenizer))[0]
    assert tokenizer.eos_token_id not in tokenizer(shown, add_special_tokens=False)["input_ids"]


def test_names_of_rows():
    assert row_name("zero-shot", "smollm2-135m") == "zero-shot-smollm2-135m"
    assert row_name("zero-shot", "a/b") != row_name("zero-shot", "c/b") and row_name("zero-shot", "a/b").startswith(
        "zero-shot-b-"
    )
    assert row_name("zero-shot", "x/..").startswith("zero-shot--")


def test_the_second_answer_costs_no_token():
    prompts = random_prompts(np.random.default_rng(2), users=1, candidates=5)
    branches = [yes_no.Branch(prompt, [answer]) for prompt in prompts for answer in (YES, NO)]
    paths = {tuple(prompt[:length]) for prompt in prompts for length in range(1, len(prompt) + 1)}
    assert pack(branches, row_tokens=1000).input_ids.numel() == len(paths)


def test_the_command_asks_a_model(tmp_path, model, capsys):
    path = rated_csv(tmp_path)
    arguments = ["score", "--config", str(path), "--score.resamples", "60", "--score.users", "4", "--score.model", str(model)]
    assert main([*arguments, "--sid.encoder", "tfidf"]) == 0
    assert "tiny lm, zero-shot" in capsys.readouterr().out
    assert main(["score", "--config", str(path), "--score.model", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err
    assert distributed_state().num_processes == 1
