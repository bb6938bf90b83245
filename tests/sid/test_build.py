import shutil

import numpy as np
import polars as pl
import pytest

from minionerec import artifacts
from minionerec.config import Config, SidConfig
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, SPLITS, Dataset
from minionerec.errors import ArtifactError, CatalogError, ConfigError, DataError
from minionerec.sid import SidIndex, assign, build
from minionerec.sid.append import append_sids
from minionerec.sid.build import build_sids
from minionerec.sid.quantize import fit_to_sample

WORDS = ["red", "green", "blue", "steel", "brass", "bolt", "nut", "hose", "rake", "spade"]


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path / "cache"))
    return Config(out=str(tmp_path / "run"), sid=SidConfig(encoder="tfidf", levels=2, codebook_size=8, iterations=10))


@pytest.fixture
def dataset(config) -> Dataset:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=4)) for _ in range(39)]
    texts.append(texts[0])
    ids = [str(item) for item in range(40)]
    catalog = pl.DataFrame({"item_id": ids, "title": texts, "text": texts}, schema=CATALOG_SCHEMA)
    empty = pl.DataFrame(schema=SPLIT_SCHEMA)
    made = Dataset(catalog, empty, empty, empty)
    with artifacts.Recipe("data", config.folder / "data", {}, {}, 0).write() as draft:
        made.save(draft.path)
    return made


def test_run_writes_an_index_once(config, dataset):
    manifest, anew = build_sids(config)
    assert anew and manifest.stage == "sid" and manifest.seed == config.seed
    assert manifest.inputs == {"data": artifacts.Manifest.load(config.folder / "data").digest}
    assert set(manifest.files) == {"index.json", "codes.safetensors", "quantizer.safetensors", "sid.json"}
    index = SidIndex.load(config.folder / "sid", dataset)
    assert index.codes.shape == (40, 2) and index.collisions() == 0
    assert [codebook.shape[0] for codebook in index.codebooks] == [8, 8]
    assert manifest.metrics["items"] == 40 and manifest.metrics["collision_rate_before"] > 0
    assert build_sids(config) == (manifest, False)


def test_same_seed_same_content_and_a_changed_seed_runs_again(config, dataset, tmp_path):
    first, _ = build_sids(config)
    again, anew = build_sids(Config(out=config.out, seed=config.seed, sid=config.sid, threads=1))
    assert not anew and again.digest == first.digest
    (config.folder / "sid" / "index.json").unlink()
    repaired, anew = build_sids(config)
    assert anew and repaired.digest == first.digest
    with pytest.raises(ConfigError, match=f"seed: {config.seed} there, 7 now"):
        build_sids(Config(out=config.out, seed=7, sid=config.sid))
    other, anew = build_sids(Config(out=config.out, seed=7, sid=config.sid, replace=True))
    assert anew and other.key != first.key


def test_keep_leaves_shared_sids(config, dataset):
    config.sid.collisions = "keep"
    manifest, _ = build_sids(config)
    index = SidIndex.load(config.folder / "sid", dataset)
    assert manifest.metrics["moved"] == 0 and manifest.metrics["collision_rate"] > 0
    assert 39 in index.items(index.codes[0])


def test_data_stage_is_required(config):
    with pytest.raises(ArtifactError, match="minionerec data prepare"):
        build_sids(config)


def test_failure_leaves_nothing_behind(config, dataset):
    config.sid.levels = 1
    with pytest.raises(CatalogError, match="40 items"):
        build_sids(config)
    assert not [*config.folder.glob("sid*")]


def test_suffix_makes_sids_of_unequal_length(config, dataset):
    config.sid.collisions = "suffix"
    manifest, _ = build_sids(config)
    index = SidIndex.load(config.folder / "sid", dataset)
    assert index.levels == 3 and index.collisions() == 0 and manifest.metrics["moved"] == 0
    assert {len(index.tokens(item)) for item in range(40)} == {2, 3}


def test_an_item_twice_is_named(config, dataset):
    doubled = Dataset(pl.concat([dataset.catalog, dataset.catalog[5:6]]), *(dataset.split(name) for name in SPLITS))
    with artifacts.Recipe("data", config.folder / "data", {}, {}, 0).write() as draft:
        doubled.save(draft.path)
    with pytest.raises(CatalogError, match=r"1 items more than once, first '5' in rows \[5, 40\]"):
        build_sids(config)
    assert not [*config.folder.glob("sid*")]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ConfigError, "no such file"),
        (b"not numpy", DataError, "not a complete .npy file"),
        (np.ones((39, 3), np.float32), DataError, r"holds float32 of shape \(39, 3\); expected float32 \(40, dimensions\)"),
        (np.ones((40, 3)), DataError, "holds float64"),
        (np.eye(40, 39, dtype=np.float32), DataError, "1 items are all zeros: rows 39 of the catalog"),
        (np.full((40, 3), np.nan, np.float32), DataError, "40 items are not finite"),
        (np.full((40, 3), 1e25, np.float32), DataError, "40 items are too large or too small to be squared.* Multiply all"),
        (np.full((40, 3), 1e-25, np.float32), DataError, "40 items are too large or too small to be squared"),
        ({"vectors": np.ones((40, 3), np.float32)}, DataError, r"an archive \(\.npz, or \.pt of torch\), not a \.npy file"),
    ],
)
def test_own_vectors_that_are_wrong(config, dataset, tmp_path, content, error, message):
    path = tmp_path / "own.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path.with_suffix(".npz"), **content)
        path = path.with_suffix(".npz")
    elif content is not None:
        np.save(path, content)
    config.sid.vectors = str(path)
    with pytest.raises(error, match=message):
        build_sids(config)
    assert not [*config.folder.glob("sid*")]


def test_fewer_items_than_codes_are_refused_before_texts_are_embedded(config, dataset, monkeypatch):
    monkeypatch.setattr("minionerec.sid.build.embed_together", lambda *_: pytest.fail("texts were embedded"))
    config.sid.codebook_sizes = [8, 64]
    with pytest.raises(CatalogError, match=r"40 items are fewer than the 64 codes of level 2 \(codebooks: 8 \+ 64\)"):
        build_sids(config)


def test_items_with_a_last_code_of_their_own(config, dataset, tmp_path):
    config.sid.collisions = "item"
    manifest, _ = build_sids(config)
    index = SidIndex.load(config.folder / "sid", dataset)
    assert index.codebook_sizes == (8, 40) and index.codes[:, 1].tolist() == list(range(40))
    assert [len(codebook) for codebook in index.codebooks] == [8]
    assert manifest.metrics["moved"] == 0 and 0 < manifest.metrics["reconstruction_error"] < 1
    assert manifest.metrics["reconstruction_error_before"] < manifest.metrics["reconstruction_error"]
    assert manifest.metrics["balance"][1] == pytest.approx(1)
    larger = Config(out=str(tmp_path / "larger"), sid=config.sid)
    with artifacts.Recipe("data", larger.folder / "data", {}, {}, 0).write() as draft:
        dataset.save(draft.path)
    with pytest.raises(ConfigError, match="each new item would need a token of its own"):
        append_sids(larger, config.folder)


def test_a_catalog_larger_than_its_sample_resumes_after_the_codes_that_are_stored(config, dataset, monkeypatch):
    config.sid.max_training_vectors = 24
    alone, _ = build_sids(config)
    monkeypatch.setattr(assign, "_SHARD", 16)
    whole, _ = build_sids(Config(out=config.out, sid=config.sid, replace=True, seed=config.seed))
    assert whole.digest == alone.digest
    shutil.rmtree(config.folder / "sid")
    original, fitted = assign._Assigner.__call__, []

    def killed(self, rows, path):
        if rows.start == 32:
            raise KeyboardInterrupt
        original(self, rows, path)

    monkeypatch.setattr(build, "fit_to_sample", lambda *given: fitted.append(given) or fit_to_sample(*given))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assign._Assigner, "__call__", killed)
        build_sids(config)
    assert len(list(config.folder.glob("sid.partial/checkpoints/codes-*.npy"))) == 2
    resumed, _ = build_sids(config)
    assert resumed.digest == whole.digest and len(fitted) == 1 and resumed.files == whole.files
