import itertools

import numpy as np
import pytest

from minionerec.sid.codebooks import ResidualQuantizer, sample_rows

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def books(vectors) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    return tuple(scale * rng.normal(size=(size, 6)).astype(np.float32) for size, scale in ((8, 0.4), (5, 0.2), (4, 0.1)))


def test_encode_and_decode_equal_a_plain_loop(vectors, books):
    quantizer = ResidualQuantizer(books)
    codes = quantizer.encode(vectors)
    assert codes.shape == (300, 3) and codes.dtype == np.int32
    for vector, row, decoded in zip(vectors, codes, quantizer.decode(codes), strict=True):
        residual, total = vector.astype(np.float64), np.zeros(6)
        for codebook, code in zip(quantizer.codebooks, row, strict=True):
            assert code == min(range(len(codebook)), key=lambda c: ((residual - codebook[c]) ** 2).sum())
            residual, total = residual - codebook[code], total + codebook[code]
        np.testing.assert_allclose(decoded, total, atol=1e-12)


def test_a_beam_as_wide_as_the_catalog_of_prefixes_finds_the_best_sum(vectors, books):
    quantizer = ResidualQuantizer(books, beam=40)
    sums = {
        codes: sum(book[code] for book, code in zip(books, codes, strict=True))
        for codes in itertools.product(*(range(len(book)) for book in books))
    }
    for vector, row in zip(vectors[:40], quantizer.encode(vectors[:40]), strict=True):
        best = min(((vector - total) ** 2).sum() for total in sums.values())
        assert ((vector - sums[tuple(row.tolist())]) ** 2).sum() == pytest.approx(best, rel=1e-4)


def test_a_wider_beam_is_never_worse_on_the_whole(vectors, books):
    errors = []
    for beam in (1, 4, 40):
        quantizer = ResidualQuantizer(books, beam=beam)
        errors.append(((vectors - quantizer.decode(quantizer.encode(vectors))) ** 2).sum())
    assert errors[0] > errors[1] >= errors[2]


@pytest.mark.parametrize("beam", [1, 4])
def test_the_guide_decides_the_first_code_and_only_that(vectors, books, beam):
    router = vectors[:8].copy()
    quantizer = ResidualQuantizer(books, router, beam)
    guide = vectors[np.random.default_rng(2).permutation(300)]
    codes = quantizer.encode(vectors, guide)
    assert (codes[:, 0] == ((guide[:, None] - router) ** 2).sum(axis=2).argmin(axis=1)).all()
    rest = ResidualQuantizer(books[1:], beam=beam).encode(vectors - books[0][codes[:, 0]])
    assert (codes[:, 1:] == rest).mean() > 0.99  # apart from rounding
    assert (quantizer.encode(vectors) == quantizer.encode(vectors, vectors)).all()


def test_distances_are_those_of_the_residual_after_the_prefix(vectors, books):
    quantizer = ResidualQuantizer(books)
    prefixes = np.array([[2, 1], [0, 4]])
    distances = quantizer.distances(vectors[:2], prefixes)
    for row, (first, second) in enumerate(prefixes):
        rest = vectors[row] - books[0][first] - books[1][second]
        np.testing.assert_allclose(distances[row], ((rest - books[2]) ** 2).sum(axis=1), atol=1e-6)
    assert quantizer.distances(vectors[:2], np.empty((2, 0), dtype=int)).shape == (2, 8)


def test_samples_are_distinct_sorted_and_repeatable():
    assert (sample_rows(5, 9, 0) == np.arange(5)).all()
    rows = sample_rows(1000, 100, 3)
    assert len(set(rows.tolist())) == 100 and (np.diff(rows) > 0).all()
    assert (rows == sample_rows(1000, 100, 3)).all() and (rows != sample_rows(1000, 100, 4)).any()
