from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.artifacts import Manifest
from minionerec.config import Config, ModelConfig, ScoreConfig, SidConfig, YesNoConfig
from minionerec.errors import ConfigError, DataError
from minionerec.eval.pair_leaderboard import read_leaderboard, write_leaderboard
from minionerec.model import checkpoint, scratch
from minionerec.prompts.pairs import PairTexts, PairWords
from minionerec.scoring import encoders, matching
from minionerec.scoring.early import check_scoring
from minionerec.scoring.encoders import CausalEncoder, SentenceEncoder
from minionerec.scoring.matching import score_matching
from minionerec.scoring.train import train_yes_no
from minionerec.scoring.trained import score_trained
from minionerec.scoring.trainer import MatchingTrainer, TextCollator, UserTexts
from minionerec.scoring.vectors import pack_texts, text_vectors
from minionerec.training.scored_pairs import read_scores
from tests.scoring.data import planted, save
from tests.scoring.test_train import SIZES, trainer_of
from tests.tree.conftest import tiny


def random_texts(seed, count=6):
    rng = np.random.default_rng(seed)
    begins = [rng.integers(0, 40, 4).tolist() for _ in range(2)]
    return [[3], *([*begins[number % 2], *rng.integers(0, 40, number).tolist()] for number in range(count))]


def one_by_one(model, texts, pooling):
    """The obvious way: each text alone, its last layer's states."""
    states = [model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0] for text in texts]
    return torch.stack([one[-1] if pooling == "last" else one.mean(0) for one in states])


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "gemma"])
def test_vectors_on_trees_are_those_one_by_one(kind):
    model, texts = tiny(kind), random_texts(0)
    texts.append(texts[-1])
    with torch.no_grad():
        for pooling in ("last", "mean"):
            for row_tokens in (1, 1000):
                vectors = text_vectors(model, pack_texts(texts, pooling, row_tokens))
                torch.testing.assert_close(vectors, one_by_one(model, texts, pooling), atol=1e-5, rtol=1e-5)
    assert pack_texts(texts, "mean", 1000).input_ids.numel() < sum(map(len, texts))  # what is shared is computed once


def users_of(seed, count=4):
    rng, texts = np.random.default_rng(seed), random_texts(seed, 8)
    made = []
    for number in range(count):
        candidates = [texts[place] for place in rng.integers(0, len(texts), rng.integers(1, 5))]
        made.append(
            UserTexts(number, rng.integers(0, 40, 9).tolist(), candidates, rng.integers(0, 2, len(candidates)).tolist())
        )
    return made


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_loss_and_gradients_are_those_of_every_pair_alone(tmp_path, pooling):
    users, model, plain = users_of(0), tiny(), tiny()
    trainer = trainer_of(model, users, tmp_path, MatchingTrainer)
    loss = trainer.compute_loss(model, TextCollator(pooling, 64)(users))
    loss.backward()
    errors = []
    for user in users:
        history = one_by_one(plain, [user.history], pooling)[0]
        for candidate, label in zip(user.candidates, user.labels, strict=True):
            vector = one_by_one(plain, [candidate], pooling)[0]
            errors.append((history @ vector / history.norm() / vector.norm() - label) ** 2)
    expected = torch.stack(errors).mean()
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert name.startswith("lm_head") or torch.allclose(ours.grad, theirs.grad, atol=1e-5), name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a causal LM of random weights."""
    sizes = ModelConfig(hidden_size=16, intermediate_size=32, layers=1, heads=2, vocabulary=400)
    language_model, tokenizer = scratch.create(planted("genre", items=16).catalog["title"].to_list(), sizes, 0)
    checkpoint.save(language_model, tokenizer, folder := tmp_path_factory.mktemp("model") / "lm")
    return folder


@pytest.fixture
def run(tmp_path, model):
    save(planted("genre", users=20, items=16, candidates=6), tmp_path / "run")
    score = ScoreConfig(encoder=str(model), pooling="mean", shard_users=7, resamples=60)
    return Config(name="planted", out=str(tmp_path / "run"), sid=SidConfig(encoder="tfidf"), score=score)


def test_every_pair_has_the_similarity_of_its_own_two_texts_and_vectors_are_made_once(run, model, monkeypatch):
    seen, made = [], CausalEncoder.vectors
    monkeypatch.setattr(CausalEncoder, "vectors", lambda self, texts: seen.append(list(texts)) or made(self, texts))
    vectors, dot, cosine = [manifest for manifest, fresh in score_matching(run) if fresh]
    assert vectors.metrics["users"] == 10 and (dot.stage[-4:], cosine.stage[-7:]) == ("-dot", "-cosine")
    embedded = [text for texts in seen for text in texts]
    pairs = planted("genre", users=20, items=16, candidates=6)
    assert len(embedded) == 10 + pairs.test["candidate"].n_unique() == len(set(embedded))  # each user's text is its own
    language_model, tokenizer = checkpoint.load(str(model))
    titles, words = pairs.catalog["title"].to_list(), PairWords.of(run.score)
    scores = {manifest.stage: read_scores(run.folder / manifest.stage)[1]["score"] for manifest in (dot, cosine)}
    with torch.no_grad():
        for number, row in enumerate(pairs.test.iter_rows(named=True)):
            listed = "\n".join(f"({place}) {titles[item]}" for place, item in enumerate(row["history"], 1))
            texts = [words.history + listed, f"The item in question: {titles[row['candidate']]}"]
            user, item = one_by_one(language_model, [tokenizer.encode(text) for text in texts], "mean")
            assert scores[dot.stage][number] == pytest.approx(float(user @ item), rel=1e-4)
            near = float(user @ item / user.norm() / item.norm())
            assert scores[cosine.stage][number] == pytest.approx(near, abs=1e-5)
    assert not any(fresh for _, fresh in score_matching(run)) and len(seen) == 4
    write_leaderboard(run)
    assert {entry["label"] for entry in read_leaderboard(run.folder)["entries"]} == {
        "lm, mean state, dot",
        "lm, mean state, cosine",
    }
    sizes = replace(run, score=replace(run.score, shard_users=100, row_tokens=16))
    assert not any(fresh for _, fresh in score_matching(sizes))  # in no key
    last = replace(run, score=replace(run.score, pooling="last"))
    assert all(fresh for _, fresh in score_matching(last)) and len(seen) > 4


class Letters:
    """In place of a sentence encoder: counts letters."""

    max_seq_length = 60

    def tokenizer(self, text, **_):
        return {"input_ids": list(text)}

    def encode(self, texts, **_):
        return np.array([[text.lower().count(letter) for letter in "aeilmosw"] for text in texts], dtype=np.float64)


def test_a_sentence_encoder_pools_by_itself_and_reads_what_fits(run, monkeypatch):
    monkeypatch.setattr(encoders, "sentence_encoder", lambda *_: Letters())
    monkeypatch.setattr(matching, "sentence_encoder_identity", lambda _: "letters")
    own = replace(run, score=ScoreConfig(encoder="minilm", resamples=60))
    vectors, dot, _ = [manifest for manifest, _ in score_matching(own)]
    assert vectors.metrics["users_with_cut_history"] == 10 and vectors.metrics["dimensions"] == 8
    assert (dot.stage, dot.metrics["label"]) == ("scoring/matching-minilm-dot", "minilm, dot")
    assert read_scores(own.folder / dot.stage)[1]["score"][0] > 0
    monkeypatch.setattr(Letters, "encode", lambda self, texts, **_: np.full((len(texts), 2), np.nan))
    with pytest.raises(DataError, match=r"scoring/vectors/matching-minilm: the vector of the text .* is not finite"):
        list(score_matching(replace(own, seed=8)))
    assert Manifest.load(own.folder / dot.stage).digest == dot.digest


def test_the_oldest_items_are_left_out_of_a_text_that_is_too_long():
    words = PairWords("", "Liked:\n", "\nNow: ", "")
    texts = PairTexts(words, ["a", "bb", "ccc"], len, 18)
    assert texts.of_user([0, 1, 2]) == ("Liked:\n(1) ccc", 2) and texts.of_item(1) == "Now: bb"
    assert replace(texts, limit=3).of_user([0, 2]) == ("Liked:\n(1) ccc", 1)  # the encoder cuts it
    assert replace(texts, limit=None).of_user([0, 1, 2]) == ("Liked:\n(1) a\n(2) bb\n(3) ccc", 0)


def test_a_folder_that_is_no_sentence_encoder_is_refused(run, model):
    for encoder, told in (
        (str(model), r"no modules\.json here.* score\.pooling last or mean"),
        ("smollm2-135m", "is a causal LM"),
        ("/no/model", r"score\.encoder /no/model: no such folder or file"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_scoring(replace(run, score=ScoreConfig(encoder=encoder)))
    with pytest.raises(ConfigError, match=r"score\.model /no/model: no such folder or file"):
        check_scoring(replace(run, score=ScoreConfig(model="/no/model")))
    with pytest.raises(ConfigError, match=r"score\.encoder"):
        SentenceEncoder(str(model / "nothing"), None)


def test_matching_learns_a_taste_that_titles_name_and_ids_cannot_carry_to_new_items(tmp_path):
    """A user likes one genre; nothing of it is in a candidate alone, and no train user has the candidates of test."""
    pairs = planted("genre", users=160, items=32, candidates=6, unseen=True)
    save(pairs, tmp_path / "run")
    section = YesNoConfig(
        "matching", "text", pooling="mean", epochs=5, patience=5, batch_size=8, micro_batch=8, learning_rate=5e-3, warmup=2
    )
    config = Config(name="planted", out=str(tmp_path / "run"), model=SIZES, yes_no=section, score=ScoreConfig(resamples=60))
    assert train_yes_no(config)[0].stage == "yes-no/matching-text"
    scored, _ = score_trained(config, "matching-text")
    assert scored.metrics["label"] == "from scratch, trained to match, items as text" and scored.metrics["GAUC"] > 0.9
    assert scored.stage == "scoring/yes-no-matching-text" and not score_trained(config, "matching-text")[1]
    train_yes_no(replace(config, yes_no=replace(section, items="id", epochs=2)))
    assert 0.4 < score_trained(config, "matching-id")[0].metrics["GAUC"] < 0.6
