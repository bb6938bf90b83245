import sys
import warnings
from importlib import util

import numpy as np
import pytest

from minionerec.config import RqVaeConfig, SidConfig
from minionerec.errors import CatalogError, ConfigError, DataError, TrainingError
from minionerec.sid import product
from minionerec.sid.collisions import resolve
from minionerec.sid.diagnose import relative_error
from minionerec.sid.quantize import METHODS, fit_quantizer
from minionerec.sid.residual import balanced_labels
from minionerec.sid.store import load_quantizer, save_quantizer
from tests.launch import forked
from tests.shared import shared

SMALL = {"codebook_sizes": [8, 6, 5], "iterations": 10, "refinements": 2, "beam": 3}
QUICK = RqVaeConfig(hidden=[16], latent=4, max_epochs=15, batch_size=64)
needs_constrained = pytest.mark.skipif(
    util.find_spec("k_means_constrained") is None, reason="needs the package k-means-constrained"
)
WITHOUT_BASELINE = [name for name in METHODS if name != "letter"]  # which test_letter.py has
ALL = [pytest.param(name, marks=needs_constrained if "constrained" in name else ()) for name in WITHOUT_BASELINE]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(12, 6))[rng.integers(0, 12, 240)] + 0.3 * rng.normal(size=(240, 6))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def config(method: str, **changes) -> SidConfig:
    return SidConfig(method=method, rqvae=QUICK, **{**SMALL, **changes})


@pytest.mark.parametrize("method", ALL)
def test_every_method_keeps_the_interface_and_beats_the_mean(method, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(product, "_ROTATIONS", 3)
    fitted = fit_quantizer(vectors, config(method), seed=1)
    assert fitted.codes.shape == (240, 3) and fitted.codes.dtype == np.int32
    assert (fitted.codes >= 0).all() and (fitted.codes < (8, 6, 5)).all()
    assert fitted.quantizer.codebook_sizes == (8, 6, 5)
    assert fitted.quantizer.decode(fitted.codes).shape == (240, 6)
    assert relative_error(vectors, fitted.codes, fitted.quantizer) < 0.8
    assert fitted.quantizer.distances(vectors[:3], fitted.codes[:3, :1]).shape == (3, 6)
    again = fit_quantizer(vectors, config(method), seed=1)
    assert (again.codes == fitted.codes).all()
    save_quantizer(fitted.quantizer, tmp_path)
    loaded = load_quantizer(tmp_path, fitted.quantizer.codebooks)
    assert (loaded.encode(vectors) == fitted.quantizer.encode(vectors)).all()
    np.testing.assert_array_equal(loaded.decode(fitted.codes), fitted.quantizer.decode(fitted.codes))
    unique = resolve(fitted.codes, vectors, fitted.quantizer, "nearest-free")
    assert len(np.unique(unique, axis=0)) == 240


def test_joint_refinement_lowers_the_error_of_its_start(vectors):
    errors = [
        relative_error(vectors, fitted.codes, fitted.quantizer)
        for fitted in (
            fit_quantizer(vectors, config("rq-kmeans-joint", refinements=rounds, collisions="keep"), 1) for rounds in (0, 1, 6)
        )
    ]
    assert errors[0] > errors[1] >= errors[2]


def test_the_guide_decides_the_first_code(vectors):
    guide = np.roll(vectors, 1, axis=0)
    for method in ("rq-kmeans", "rq-kmeans-joint"):
        fitted = fit_quantizer(vectors, config(method), 1, guide)
        router = fitted.quantizer.router
        assert (fitted.codes[:, 0] == ((guide[:, None] - router) ** 2).sum(axis=2).argmin(axis=1)).all()
        plain = fit_quantizer(vectors, config(method), 1)
        assert relative_error(vectors, fitted.codes, fitted.quantizer) > relative_error(vectors, plain.codes, plain.quantizer)


def test_other_seed_other_codes(vectors):
    assert (fit_quantizer(vectors, config("rq-kmeans"), 1).codes != fit_quantizer(vectors, config("rq-kmeans"), 2).codes).any()


def test_codes_are_the_same_in_another_process_with_other_threads(vectors, tmp_path):
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "fit.py").write_text(
        "import sys, numpy as np, torch\n"
        "from threadpoolctl import threadpool_limits\n"
        "from minionerec.config import SidConfig\n"
        "from minionerec.sid.quantize import fit_quantizer\n"
        "torch.set_num_threads(2)\n"
        "threadpool_limits(2)\n"
        f"codes = fit_quantizer(np.load(sys.argv[1]), SidConfig(method='rq-kmeans-joint', **{SMALL}), 1).codes\n"
        "np.save(sys.argv[2], codes)"
    )
    forked(1, str(tmp_path / "fit.py"), str(tmp_path / "vectors.npy"), str(tmp_path / "codes.npy"))
    assert (np.load(tmp_path / "codes.npy") == fit_quantizer(vectors, config("rq-kmeans-joint"), 1).codes).all()


def test_a_catalog_larger_than_the_sample_may_stay_on_disk(vectors, tmp_path):
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    fitted = fit_quantizer(mapped, config("rq-kmeans", max_training_vectors=100), 1)
    assert fitted.codes.shape == (240, 3)
    assert (fitted.codes == fit_quantizer(vectors, config("rq-kmeans", max_training_vectors=100), 1).codes).all()
    assert 0 < relative_error(vectors, fitted.codes, fitted.quantizer) < 0.6


@pytest.mark.parametrize("method", ["rq-kmeans", "rq-kmeans-sinkhorn"])
def test_few_distinct_vectors_are_kept_exactly(method, vectors):
    few = np.repeat(vectors[:3], 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_quantizer(few, SidConfig(method=method, codebook_sizes=[8, 8]), 0)
    np.testing.assert_allclose(fitted.quantizer.decode(fitted.codes), few, atol=1e-6)
    assert len(np.unique(fitted.codes, axis=0)) == 3


def test_sinkhorn_fills_clusters_evenly():
    rng = np.random.default_rng(0)
    labels = balanced_labels(rng.random((400, 8)) + np.linspace(0, 0.5, 8))
    assert np.bincount(labels, minlength=8).min() > 25


def test_vectors_that_cannot_be_quantised(vectors):
    for value, message in ((np.nan, "not finite"), (0, "all zeros")):
        bad = vectors.copy()
        bad[[7, 9]] = value
        with pytest.raises(DataError, match=rf"2 items are {message}.*rows 7, 9 of the catalog"):
            fit_quantizer(bad, config("rq-kmeans"), 1)
    with pytest.raises(CatalogError, match=r"4 items are fewer than the 8 codes of level 1.*--sid.codebook_size"):
        fit_quantizer(vectors[:4], config("rq-kmeans"), 1)
    with pytest.raises(CatalogError, match=r"one item only.*data\.item_k"):
        fit_quantizer(vectors[:1], config("rq-kmeans"), 1)
    with pytest.raises(DataError, match="expected float32"):
        fit_quantizer(np.ones((5, 2), dtype=int), config("rq-kmeans"), 1)
    with pytest.raises(ConfigError, match="dimension per level"):
        fit_quantizer(vectors[:, :2].copy(), config("pq"), 1)


def test_constrained_without_its_package(vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "k_means_constrained", None)
    with pytest.raises(ConfigError, match=r"pip install 'minionerec\[balanced\]'"):
        fit_quantizer(vectors, config("rq-kmeans-constrained"), 1)


def test_every_hidden_width_plays_a_part(vectors):
    deep = RqVaeConfig(hidden=[16, 8], latent=4, max_epochs=1, batch_size=64)
    for method, encoder in (("rq-vae", [(16, 6), (8, 16), (4, 8)]), ("rq-kmeans-plus", [(16, 6), (8, 16), (6, 8)])):
        quantizer = fit_quantizer(vectors, SidConfig(method=method, rqvae=deep, **SMALL), 1).quantizer
        assert [weight.shape for weight, _ in quantizer.encoder] == encoder
        assert [weight.shape for weight, _ in quantizer.decoder] == [shape[::-1] for shape in encoder[::-1]]


def test_a_neural_quantizer_that_diverges_says_so(vectors):
    wild = SidConfig(method="rq-vae", rqvae=RqVaeConfig(hidden=[16], latent=4, max_epochs=5), **SMALL)
    wild.rqvae.learning_rate = 1e18  # the configuration's own bound is far below
    with pytest.raises(TrainingError, match=r"lower sid\.rqvae\.learning_rate"):
        fit_quantizer(vectors, wild, 1)


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"revive": False}])
def test_rqvae_options_change_the_result(vectors, changes):
    plain = fit_quantizer(vectors, config("rq-vae"), 1)
    other = RqVaeConfig(hidden=[16], latent=4, max_epochs=15, batch_size=64, **changes)
    changed = fit_quantizer(vectors, SidConfig(method="rq-vae", rqvae=other, **SMALL), 1)
    assert relative_error(vectors, changed.codes, changed.quantizer) < 0.9
    if "ema" in changes:
        assert any((a != b).any() for a, b in zip(plain.quantizer.codebooks, changed.quantizer.codebooks, strict=True))


@pytest.mark.slow
def test_industrial_catalog_reaches_its_error_with_a_sid_for_every_item():
    vectors = np.load(shared("data/embeddings/industrial_minilm_256.npy"), allow_pickle=False)
    fitted = fit_quantizer(vectors, SidConfig(codebook_sizes=[256, 256, 256], refinements=2), seed=42)
    before = relative_error(vectors, fitted.codes, fitted.quantizer)
    unique = resolve(fitted.codes, vectors, fitted.quantizer, "nearest-free")
    assert before <= 0.35 and len(np.unique(unique, axis=0)) == len(vectors) == 3686
    assert relative_error(vectors, unique, fitted.quantizer) <= 1.02 * before
