"""LETTER's two terms against slow versions of themselves, what they do to planted data, and the method through the stage."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from minionerec.artifacts import Manifest
from minionerec.config import LetterConfig, RqVaeConfig, SidConfig
from minionerec.errors import CatalogError, ConfigError
from minionerec.pipeline import run
from minionerec.sid.collaborative import CollaborativeVectors
from minionerec.sid.collisions import resolve
from minionerec.sid.diagnose import relative_error
from minionerec.sid.letter import LetterTerms, even_groups, even_labels
from minionerec.sid.quantize import fit_quantizer
from minionerec.sid.store import load_quantizer, save_quantizer
from tests.sid.baselines import sids_that_ask_a_baseline
from tests.small import config as small_config

SIZES = [8, 6, 6]
QUICK = RqVaeConfig(hidden=[16], latent=4, max_epochs=6, batch_size=64)
EVERYTHING = np.ones(240, dtype=bool)


def section(method="letter", alignment=0.01, diversity=1e-4, groups=3, **changes):
    model = "sasrec" if method == "letter" else None
    fields = {"codebook_sizes": SIZES, "iterations": 10, "rqvae": QUICK, "collaborative_model": model, **changes}
    return SidConfig(method=method, letter=LetterConfig(alignment, diversity, groups), **fields)


@pytest.fixture(scope="module")
def vectors():
    """Texts in 12 clusters."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(12, 6))[np.arange(240) % 12] + 0.3 * rng.normal(size=(240, 6))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def collaborative():
    """Users see 5 clusters, across those of the texts."""
    rng = np.random.default_rng(1)
    return CollaborativeVectors(
        (2 * rng.normal(size=(5, 4))[np.arange(240) % 5] + 0.3 * rng.normal(size=(240, 4))).astype(np.float32), EVERYTHING
    )


def terms(collaborative, alignment=1.0, diversity=1.0, groups=2):
    made = LetterTerms(collaborative, section(alignment=alignment, diversity=diversity, groups=groups), 1.0, 3)
    made.begin_epoch([np.random.default_rng(2).normal(size=(size, 4)).astype(np.float32) for size in SIZES])
    return made


def test_without_its_two_terms_it_is_rq_vae_to_the_last_bit(vectors, collaborative):
    plain = fit_quantizer(vectors, section("rq-vae"), 1)
    letter = fit_quantizer(vectors, section(alignment=0.0, diversity=0.0), 1, None, collaborative)
    assert np.array_equal(plain.codes, letter.codes)
    for one, other in zip(plain.quantizer.codebooks, letter.quantizer.codebooks, strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(plain.quantizer.encoder, letter.quantizer.encoder, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_term_changes_the_codes_and_equal_seeds_give_equal_ones(vectors, collaborative, tmp_path):
    plain, both = fit_quantizer(vectors, section("rq-vae"), 1), section()
    for chosen in (section(alignment=0.1, diversity=0.0), section(alignment=0.0, diversity=0.1)):
        books = fit_quantizer(vectors, chosen, 1, None, collaborative).quantizer.codebooks
        assert any(not np.array_equal(a, b) for a, b in zip(books, plain.quantizer.codebooks, strict=True))
    one, again, other = (fit_quantizer(vectors, both, seed, None, collaborative) for seed in (1, 1, 2))
    assert np.array_equal(one.codes, again.codes) and not np.array_equal(one.codes, other.codes)
    assert relative_error(vectors, one.codes, one.quantizer) < 1
    save_quantizer(one.quantizer, tmp_path)
    loaded = load_quantizer(tmp_path, one.quantizer.codebooks)  # new items need no baseline
    assert np.array_equal(loaded.encode(vectors), one.codes)
    assert len(np.unique(resolve(one.codes, vectors, one.quantizer, "nearest-free"), axis=0)) == 240
    assert all(np.array_equal(a, b) for a, b in zip(one.quantizer.codebooks, again.quantizer.codebooks, strict=True))


def test_the_alignment_is_the_cross_entropy_of_the_own_vector(collaborative):
    quantised, rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 200, 3, 9, 100])
    seen = EVERYTHING.copy()
    seen[[3, 100]] = False
    by_hand = 0.0
    known = [0, 1, 3]
    for row in known:
        products = [float(quantised[row] @ torch.from_numpy(collaborative.vectors[rows[other]])) for other in known]
        by_hand -= np.log(
            np.exp(float(quantised[row] @ torch.from_numpy(collaborative.vectors[rows[row]]))) / np.exp(products).sum()
        )
    partly = terms(CollaborativeVectors(collaborative.vectors, seen), alignment=0.5)
    assert float(partly.alignment(quantised, rows)) == pytest.approx(0.5 * by_hand / 3, rel=1e-5)
    assert float(partly.alignment(quantised[2:4], rows[2:4])) == 0.0  # one seen item has nothing to be told from


def test_what_the_best_epoch_is_chosen_by_covers_the_catalog_in_batches(collaborative):
    whole = terms(collaborative, alignment=0.5)
    quantised = np.random.default_rng(0).normal(size=(240, 4))
    latent = torch.from_numpy(quantised.astype(np.float32))
    batches = [torch.arange(start, min(start + 64, 240)) for start in range(0, 240, 64)]
    expected = sum(len(rows) * float(whole.alignment(latent[rows], rows)) for rows in batches) / 240
    assert whole.misaligned(quantised) == pytest.approx(expected, rel=1e-6)
    assert terms(collaborative, alignment=0.0).misaligned(quantised) == 0.0


def test_a_drawn_code_is_another_of_the_same_group_each_equally_often(collaborative):
    made = terms(collaborative)
    for level, size in enumerate(SIZES):
        codes = torch.arange(size).repeat(600)
        drawn = made.drawn(level, codes)
        assert (drawn != codes).all() and torch.equal(made.groups[level][drawn], made.groups[level][codes])
        counts = torch.zeros(size, size).index_put_((codes, drawn), torch.ones(len(codes)), accumulate=True)
        peers = int((made.groups[level] == made.groups[level][0]).sum()) - 1
        assert counts[0].count_nonzero() == peers and counts[0].max() < 1.3 * 600 / peers


def test_the_diversity_is_the_cross_entropy_of_the_drawn_code_among_the_others(collaborative, monkeypatch):
    made = terms(collaborative, diversity=0.5)
    book = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes, drawn = torch.tensor([0, 5, 2, 0]), torch.tensor([3, 1, 4, 2])
    monkeypatch.setattr(made, "drawn", lambda level, codes: drawn)
    by_hand = 0.0
    for code, positive in zip(codes.tolist(), drawn.tolist(), strict=True):
        products = {other: (book[code] @ book[other]).item() for other in range(6) if other != code}
        by_hand -= products[positive] - np.log(np.exp(list(products.values())).sum())
    loss = made.diversity(1, codes, book)
    assert loss.item() == pytest.approx(0.5 * by_hand / 4, rel=1e-5)
    loss.backward()
    assert book.grad.isfinite().all() and book.grad.abs().max() > 0


@pytest.mark.parametrize(("points", "groups"), [(8, 3), (6, 2), (7, 7), (9, 4), (3, 5)])
def test_groups_have_equal_sizes_and_the_least_total_distance(points, groups):
    distances = np.random.default_rng(points).random((points, groups))
    labels = even_labels(distances)
    sizes = np.bincount(labels, minlength=groups)
    assert sizes.max() - sizes.min() <= 1 and sizes.sum() == points
    if groups**points < 70_000:
        allowed = [
            choice
            for choice in itertools.product(range(groups), repeat=points)
            if np.ptp(np.bincount(choice, minlength=groups)) <= 1
        ]
        least = min(distances[np.arange(points), list(choice)].sum() for choice in allowed)
        assert distances[np.arange(points), labels].sum() == pytest.approx(least)


def test_even_groups_find_planted_ones():
    planted = np.arange(30) % 3
    points = (10 * np.eye(3)[planted] + 0.1 * np.random.default_rng(0).normal(size=(30, 3))).astype(np.float32)
    labels, means = even_groups(points, points[:3], 3)
    assert np.array_equal(labels, planted) and np.allclose(means, 10 * np.eye(3), atol=0.2)


def agreement(fitted, clusters):
    """How much nearer two items of a collaborative cluster are in the latent space than any two, from 0 to 1."""
    latent = fitted.quantizer.latent.decode(fitted.codes)
    latent = (latent - latent.mean(0)) / np.linalg.norm(latent - latent.mean(0), axis=1, keepdims=True).clip(1e-9)
    near = np.argsort(-(latent @ latent.T) + 2 * np.eye(len(latent)), axis=1, kind="stable")[:, :10]
    return (clusters[near] == clusters[:, None]).mean()


def test_the_alignment_raises_the_agreement_with_collaborative_neighbours():
    """Texts speak loudly of 12 subjects and softly of what users take together."""
    rng, clusters = np.random.default_rng(0), np.arange(240) % 5
    subjects = rng.normal(size=(12, 6))[rng.integers(0, 12, 240)]
    texts = np.concatenate([subjects, 0.4 * np.eye(5)[clusters]], axis=1) + 0.05 * rng.normal(size=(240, 11))
    users = CollaborativeVectors((2 * rng.normal(size=(5, 4)))[clusters].astype(np.float32), EVERYTHING)
    longer, shares = replace(QUICK, max_epochs=40, patience=40), []
    for alignment in (0.0, 1.0):
        chosen = section(alignment=alignment, diversity=0.0, rqvae=longer)
        shares.append(agreement(fit_quantizer(texts.astype(np.float32), chosen, 1, None, users), clusters))
    assert shares[0] < 0.4 and shares[1] > shares[0] + 0.2, shares  # a fifth by chance


def perplexity(codes):
    """How many evenly used codes would spread the items as well."""
    shares = np.bincount(codes) / len(codes)
    return np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def test_the_diversity_flattens_the_use_of_codes(collaborative):
    """Texts with a crowd in the middle and far-off ones; codes that nobody chose are not revived."""
    texts = (np.random.default_rng(0).normal(size=(240, 6)) ** 3).astype(np.float32)
    longer = replace(QUICK, max_epochs=25, patience=25, revive=False, learning_rate=1e-2)
    spread = {}
    for diversity in (0.0, 1.0):
        chosen = section(alignment=0.0, diversity=diversity, groups=2, rqvae=longer)
        codes = [fit_quantizer(texts, chosen, seed, None, collaborative).codes for seed in (1, 2)]
        spread[diversity] = np.mean([[perplexity(column) for column in fitted.T] for fitted in codes], axis=0)
    assert spread[1.0][0] > spread[0.0][0] + 0.5 and spread[1.0].sum() > spread[0.0].sum() + 0.5, spread


def test_what_it_cannot_be_fitted_to_is_refused(vectors, collaborative):
    with pytest.raises(ConfigError, match=r"aligns SIDs with .* but sid\.collaborative_model is null"):
        SidConfig(method="letter")
    with pytest.raises(ConfigError, match=r"sid\.rqvae\.ema is 0\.9: codebooks that follow averages have no gradient"):
        section(rqvae=replace(QUICK, ema=0.9))
    section(rqvae=replace(QUICK, ema=0.9), diversity=0.0)
    with pytest.raises(ConfigError, match=r"sid\.letter\.groups is 4, .* only 6 \(codebooks: 8 \+ 6 \+ 6\)"):
        section(groups=4)
    section(groups=4, diversity=0.0)
    with pytest.raises(ConfigError, match=r"needs the item vectors of a baseline"):
        fit_quantizer(vectors, section(), 1)
    wide = CollaborativeVectors(np.ones((240, 64), np.float32), EVERYTHING)
    with pytest.raises(
        ConfigError, match=r"4 numbers \(sid\.rqvae\.latent\) .* sasrec, which have 64\. Set --sid\.rqvae\.latent 64"
    ):
        fit_quantizer(vectors, section(), 1, None, wide)
    with pytest.raises(CatalogError, match=r"5 items are fewer than the 8 codes of level 1"):
        fit_quantizer(vectors[:5], section(), 1, None, collaborative.take(np.arange(5)))


def test_a_sample_of_a_large_catalog_brings_its_own_collaborative_vectors(vectors, collaborative):
    fitted = fit_quantizer(vectors, section(max_training_vectors=100), 1, None, collaborative)
    assert fitted.codes.shape == (240, 3)


def test_the_stage_asks_the_runs_baseline_and_its_settings_are_in_the_key(tmp_path):
    fields = {"method": "letter", "collaborative_model": "sasrec", "rqvae": {"hidden": [16], "latent": 16, "max_epochs": 3}}
    fields |= {"letter": {"groups": 2}, "coarse_first": False}
    made = small_config(tmp_path, sid=fields, baseline={"model": "sasrec", "epochs": 1, "hidden_size": 16})
    manifest = sids_that_ask_a_baseline(made)
    assert manifest.config["sid"]["letter"]["groups"] == 2
    run(made, ("sid",))
    assert Manifest.load(made.folder / "sid").created == manifest.created  # current
    made.sid.letter.alignment = 0.5
    run(made, ("sid",))
    assert Manifest.load(made.folder / "sid").key != manifest.key
    made.sid = replace(made.sid, method="rq-vae", collaborative_model=None)
    run(made, ("sid",))
    plain = Manifest.load(made.folder / "sid")
    assert "letter" not in plain.config["sid"]
    made.sid.letter.alignment = 0.7  # which no other method reads
    run(made, ("sid",))
    assert Manifest.load(made.folder / "sid").key == plain.key
