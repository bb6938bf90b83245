"""New items: old SIDs stay, the lineage grows, and what does not fit is refused."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minionerec import artifacts
from minionerec.config import Config, SidConfig
from minionerec.data.dataset import CATALOG_SCHEMA, SPLIT_SCHEMA, Dataset
from minionerec.errors import CatalogError, ConfigError
from minionerec.sid import SidIndex, append, build
from minionerec.sid.codebooks import ResidualQuantizer
from tests.examples import examples

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(60, 5)).astype(np.float32)


def write_run(folder: Path, rows: list[int], **fields) -> Config:
    """A run with a data stage that holds these items, each with a vector of its own."""
    names = [f"i{row}" for row in rows]
    empty = pl.DataFrame(schema=SPLIT_SCHEMA)
    catalog = pl.DataFrame({"item_id": names, "title": names, "text": names}, schema=CATALOG_SCHEMA)
    with artifacts.Recipe("data", folder / "data", {}, {}, 0).write() as draft:
        Dataset(catalog, empty, empty, empty).save(draft.path)
    np.save(folder / "vectors.npy", VECTORS[rows])
    chosen = {"vectors": str(folder / "vectors.npy"), "codebook_sizes": [4, 4, 6], "refinements": 1, "beam": 2} | fields
    return Config(out=str(folder), sid=SidConfig(**chosen))


def load(config: Config) -> SidIndex:
    return SidIndex.load(config.folder / "sid", Dataset.load(config.folder / "data"))


@pytest.mark.parametrize("method", ["rq-kmeans-joint", "rq-vae"])
@pytest.mark.parametrize("collisions", ["nearest-free", "suffix", "keep"])
def test_old_sids_stay_and_tokens_are_the_same(tmp_path, method, collisions):
    old = write_run(tmp_path / "old", list(range(40)), method=method, collisions=collisions)
    build.build_sids(old)
    mixed = [50, *range(40), *range(51, 60)]
    new = write_run(tmp_path / "new", mixed, method=method, collisions=collisions)
    manifest, anew = append.append_sids(new, old.folder)
    before, after = load(old), load(new)
    assert anew and manifest.metrics["appended"] == 10 and append.append_sids(new, old.folder) == (manifest, False)
    assert (after.codes[1:41] == before.codes).all()
    assert after.token_strings() == before.token_strings()
    assert (collisions == "keep") or after.collisions() == 0
    assert after.lineage == (
        {"base": artifacts.Manifest.load(old.folder / "sid").digest, "items_before": 40, "items_after": 50},
    )
    newer = write_run(tmp_path / "newer", [*mixed, 41], method=method, collisions=collisions)
    append.append_sids(newer, new.folder)
    assert [step["items_after"] for step in load(newer).lineage] == [50, 51]


def test_what_cannot_be_appended(tmp_path):
    old = write_run(tmp_path / "old", list(range(40)))
    build.build_sids(old)
    with pytest.raises(CatalogError, match=r"1 of the 40 items of .* are not in the new catalog, first 'i39'"):
        append.append_sids(write_run(tmp_path / "less", list(range(39))), old.folder)
    with pytest.raises(ConfigError, match=r"sid\.collisions is keep, but .* was made with nearest-free"):
        append.append_sids(write_run(tmp_path / "other", list(range(41)), collisions="keep"), old.folder)
    with pytest.raises(ConfigError, match="own folder"):
        append.append_sids(old, old.folder)
    narrow = write_run(tmp_path / "narrow", list(range(41)))
    np.save(narrow.sid.vectors, VECTORS[:41, :4])
    with pytest.raises(ConfigError, match=r"own vectors of 4 dimensions, but .* was made with own vectors of 5 dimensions"):
        append.append_sids(narrow, old.folder)
    assert not (narrow.folder / "sid").exists()


@pytest.mark.parametrize("method", ["rq-kmeans-joint", "rq-kmeans", "rq-vae", "opq"])
def test_other_vectors_are_refused_and_the_same_never(tmp_path, monkeypatch, method):
    table = VECTORS.copy()
    table[5:40] = table[5]  # one text many times: collisions move most of these items far away
    table[:3] *= 20
    monkeypatch.setattr(sys.modules[__name__], "VECTORS", table)
    old = write_run(tmp_path / "old", list(range(40)), method=method)
    build.build_sids(old)
    new = write_run(tmp_path / "new", list(range(41)), method=method)
    others = {
        "unrelated": np.random.default_rng(1).normal(size=(41, 5)).astype(np.float32),
        "other order": table[[*range(1, 41), 0]],
        "scaled": table[:41] * 20,
        "centred": table[:41] - table[:41].mean(axis=0),
    }
    for vectors in others.values():
        np.save(new.sid.vectors, vectors)
        with pytest.raises(
            ConfigError, match=r"The vectors \(own vectors of 5 dimensions\) are not those that the SIDs in .*sid were"
        ):
            append.append_sids(new, old.folder)
        assert not (new.folder / "sid").exists()
    np.save(new.sid.vectors, table[:41])
    assert append.append_sids(new, old.folder)[1]


@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@examples(30)
def test_the_order_of_new_items_does_not_matter(seed, random):
    rng = np.random.default_rng(seed)
    quantizer = ResidualQuantizer(tuple(rng.normal(size=(3, 2)).astype(np.float32) for _ in range(3)))
    vectors = rng.normal(size=(20, 2)).astype(np.float32)
    base = SidIndex(np.array([[0, 0, 0], [1, 1, 1]], dtype=np.int32), (3, 3, 3), "digest")
    order = np.array([0, 1, *random.sample(range(2, 20), 18)])
    straight = append.extend(base, np.arange(2), quantizer.encode(vectors), vectors, quantizer, share=False)
    shuffled = append.extend(base, np.arange(2), quantizer.encode(vectors[order]), vectors[order], quantizer, share=False)
    assert (shuffled == straight[order]).all()
    assert len(np.unique(straight, axis=0)) == 20 and (straight[:2] == base.codes).all()


def test_a_full_index_takes_no_more():
    quantizer = ResidualQuantizer((np.eye(2, dtype=np.float32),))
    base = SidIndex(np.array([[0], [1]], dtype=np.int32), (2,), "digest")
    vectors = np.eye(3, 2).astype(np.float32)
    with pytest.raises(CatalogError, match="All 2 semantic IDs are taken"):
        append.extend(base, np.arange(2), quantizer.encode(vectors), vectors, quantizer, share=False)


def test_a_suffixed_group_grows_while_its_tokens_last():
    quantizer = ResidualQuantizer((np.array([[0.0], [5.0], [9.0]], dtype=np.float32),))
    base = SidIndex(np.array([[0, 0], [0, 1], [1, -1]], dtype=np.int32), (3, 3), "digest")
    vectors = np.array([[0.0], [0.1], [5.0], [0.2], [0.3]], dtype=np.float32)
    codes = append.extend(base, np.arange(3), quantizer.encode(vectors), vectors, quantizer, share=False)
    assert sorted(codes[3:].tolist()) == [[0, 2], [2, -1]]  # the second finds the suffixes of <a_0> used up
