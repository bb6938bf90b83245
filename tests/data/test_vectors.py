import numpy as np
import pytest
from safetensors.numpy import load_file

from minionerec.data.vectors import BaselineVectors, load_vectors, logprobs_of_scores
from minionerec.errors import ArtifactError, DataError
from tests.small import SEQUENCES, leave_one_out

pytestmark = pytest.mark.fast


def vectors(dataset, items: int = 6) -> BaselineVectors:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return BaselineVectors(
        draw(items, 4), draw(items), {split: draw(len(dataset.split(split)), 4) for split in ("train", "valid", "test")}
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "baselines" / "sasrec"
    folder.mkdir(parents=True)
    return folder


def test_vectors_survive_a_file(tmp_path, folder):
    dataset = leave_one_out(SEQUENCES, 6, 20)
    saved = vectors(dataset)
    saved.save(folder)
    assert set(load_file(folder / "vectors.safetensors")) == {"items", "bias", "train", "valid", "test"}
    loaded = load_vectors(tmp_path, "sasrec", dataset, "A test")
    np.testing.assert_array_equal(loaded.items, saved.items)
    np.testing.assert_array_equal(loaded.bias, saved.bias)
    for split, states in saved.states.items():
        np.testing.assert_array_equal(loaded.states[split], states)


def test_vectors_of_other_data_are_refused(tmp_path, folder):
    dataset = leave_one_out(SEQUENCES, 6, 20)
    vectors(dataset, items=5).save(folder)
    with pytest.raises(ArtifactError, match=r"5 items, but the run has 6. Run again: minionerec baseline"):
        load_vectors(tmp_path, "sasrec", dataset, "A test")
    vectors(leave_one_out({"a": [0, 1, 2, 3]}, 6, 20)).save(folder)
    with pytest.raises(ArtifactError, match=r"1 train rows, but the run has 4"):
        load_vectors(tmp_path, "sasrec", dataset, "A test")


def test_scores_as_log_probabilities():
    scores = np.array([[1000.0, 999.0], [-2.0, -2.0]], np.float32)
    before = scores.copy()
    logprobs = logprobs_of_scores(scores, "sasrec")
    assert logprobs.dtype == np.float64
    np.testing.assert_allclose(np.exp(logprobs), [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], [0.5, 0.5]], rtol=1e-12)
    np.testing.assert_array_equal(scores, before)
    for wrong in (np.nan, np.inf, -np.inf):
        with pytest.raises(
            DataError, match=r"sasrec gives scores that are not finite.*minionerec baseline --baseline.model sasrec"
        ):
            logprobs_of_scores(np.array([[0.0, wrong]]), "sasrec")
