import warnings

import numpy as np
import pytest

from minionerec.sid.quantize import ResidualQuantizer, residual_kmeans


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def quantizer(vectors) -> ResidualQuantizer:
    return residual_kmeans(vectors, (8, 5, 4), iterations=20, seed=3)


def test_encode_and_decode_equal_a_plain_loop(vectors, quantizer):
    codes = quantizer.encode(vectors)
    assert codes.shape == (300, 3) and codes.dtype == np.int32
    for vector, row, decoded in zip(vectors, codes, quantizer.decode(codes), strict=True):
        residual, total = vector.astype(np.float64), np.zeros(6)
        for codebook, code in zip(quantizer.codebooks, row, strict=True):
            assert code == min(range(len(codebook)), key=lambda c: ((residual - codebook[c]) ** 2).sum())
            residual, total = residual - codebook[code], total + codebook[code]
        np.testing.assert_allclose(decoded, total, atol=1e-12)


def test_distances_are_those_of_the_residual_after_the_prefix(vectors, quantizer):
    prefixes = np.array([[2, 1], [0, 4]])
    distances = quantizer.distances(vectors[:2], prefixes)
    for row, (first, second) in enumerate(prefixes):
        rest = vectors[row] - quantizer.codebooks[0][first] - quantizer.codebooks[1][second]
        np.testing.assert_allclose(distances[row], ((rest - quantizer.codebooks[2]) ** 2).sum(axis=1), atol=1e-6)
    assert quantizer.distances(vectors[:2], np.empty((2, 0), dtype=int)).shape == (2, 8)


def test_every_level_lowers_the_error(vectors, quantizer):
    codes = quantizer.encode(vectors)
    errors = [((vectors - quantizer.decode(codes[:, :levels])) ** 2).sum() for levels in range(4)]
    assert errors == sorted(errors, reverse=True)


def test_same_seed_same_codebooks_and_another_seed_others(vectors, quantizer):
    again = residual_kmeans(vectors, (8, 5, 4), iterations=20, seed=3)
    other = residual_kmeans(vectors, (8, 5, 4), iterations=20, seed=4)
    assert all((a == b).all() for a, b in zip(again.codebooks, quantizer.codebooks, strict=True))
    assert any((a != b).any() for a, b in zip(other.codebooks, quantizer.codebooks, strict=True))


def test_fewer_distinct_vectors_than_codes_are_kept_exactly(vectors):
    few = vectors[[0, 1, 2, 0, 1, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer = residual_kmeans(few, (8, 8), iterations=5, seed=0)
    codes = quantizer.encode(few)
    assert quantizer.codebook_sizes == (8, 8)
    np.testing.assert_allclose(quantizer.decode(codes), few, atol=1e-6)
    assert len(np.unique(codes, axis=0)) == 3


def test_nearly_equal_vectors_cause_no_warning(vectors):
    jittered = np.repeat(vectors[:3], 20, axis=0)
    jittered += np.random.default_rng(1).normal(scale=1e-7, size=jittered.shape).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        residual_kmeans(jittered, (16, 16, 16), iterations=5, seed=0)
