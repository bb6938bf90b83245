"""A finished baseline that is asked about histories again, against what it left when it was trained."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch

from minionerec.artifacts import Manifest, Recipe
from minionerec.baselines.train import train_baseline
from minionerec.config import BaselineConfig, Config
from minionerec.data.dataset import Dataset
from minionerec.data.vectors import load_vectors
from minionerec.errors import ArtifactError
from minionerec.recommend.cache import Interactions, Sequential
from minionerec.recommend.cache.sequential import scorer_of_run
from tests.small import random_dataset, reseal

ITEMS = 30
SIZES = {"max_history": 5, "epochs": 2, "hidden_size": 8, "top": ITEMS, "learning_rate": 0.01}
MODELS = {  # packed, padded, with a bias per item, without a table that is tied
    "sasrec": {"heads": 4},
    "gru4rec": {},
    "bert4rec": {"heads": 2},
    "caser-released": {},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with data and some baselines of sizes that are not the default."""
    folder = tmp_path_factory.mktemp("run")
    with Recipe("data", folder / "data", {}, {}, 0).write() as draft:
        random_dataset(items=ITEMS)[0].save(draft.path)
    for name, options in MODELS.items():
        train_baseline(Config(out=str(folder), baseline=BaselineConfig(model=name, **SIZES, **options)))
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("name", MODELS)
def test_it_says_of_the_runs_rows_what_its_vectors_and_lists_say(trained, name):
    dataset = Dataset.load(trained / "data")
    state = torch.random.get_rng_state()
    scorer = scorer_of_run(trained, name, ITEMS)
    assert torch.equal(torch.random.get_rng_state(), state)  # a training that asks it draws on as before
    assert (scorer.name, scorer.digest) == (name, Manifest.load(trained / "baselines" / name).digest)
    component, vectors = Sequential(Interactions.of_dataset(dataset), scorer), load_vectors(trained, name, dataset, "a test")
    for split in ("train", "valid", "test"):
        histories = dataset.split(split)["history"].to_list()
        assert max(map(len, histories)) > SIZES["max_history"]  # of which the model reads the last
        answers = component.probabilities(histories)
        logits = vectors.scores(split, np.arange(len(histories)))
        expected = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(answers, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)
        np.testing.assert_allclose(answers.sum(axis=1), 1)
        if split != "train":
            lists = pl.read_parquet(trained / "baselines" / name / f"{split}.parquet")["items"].to_list()
            assert np.argsort(-answers, axis=1, kind="stable").tolist() == lists
    alone = [component.probabilities([history])[0] for history in histories[:3]]
    np.testing.assert_allclose(alone, answers[:3], rtol=1e-4)  # whoever else is asked about


@pytest.mark.parametrize("name", MODELS)
def test_it_knows_histories_that_no_row_has(trained, name):
    rng = np.random.default_rng(1)
    histories = [rng.integers(0, ITEMS, length) for length in (1, 9, 2, 40, 5) for _ in range(120)]  # more than one chunk
    scores = scorer_of_run(trained, name, ITEMS).score(histories)
    assert scores.shape == (600, ITEMS) and scores.dtype == np.float32 and np.isfinite(scores).all()
    recent = [history[-SIZES["max_history"] :] for history in histories]
    np.testing.assert_allclose(scorer_of_run(trained, name, ITEMS).score(recent), scores, atol=1e-5)
    assert scorer_of_run(trained, name, ITEMS).score([]).shape == (0, ITEMS)


def test_what_does_not_fit_is_refused(copied):
    sasrec = copied / "baselines/sasrec"
    with pytest.raises(ArtifactError, match=r"caser: no finished artefact here.*minionerec baseline --baseline.model caser"):
        scorer_of_run(copied, "caser", ITEMS)
    with pytest.raises(ArtifactError, match="The data have 31 items, the file 30"):
        scorer_of_run(copied, "sasrec", 31)
    manifest = Manifest.load(sasrec)
    with pytest.raises(ArtifactError, match=r"caser-released.* was made from another data than the one in this run"):
        shutil.rmtree(copied / "data")
        with Recipe("data", copied / "data", {}, {}, 0).write() as draft:
            random_dataset(items=ITEMS, seed=1)[0].save(draft.path)
        scorer_of_run(copied, "caser-released", ITEMS)
    reseal(sasrec, inputs={"sequences": "0" * 64})
    with pytest.raises(ArtifactError, match="was trained on a file of sequences, whose items are not this run's"):
        scorer_of_run(copied, "sasrec", ITEMS)
    data = Manifest.load(copied / "data").digest
    for values, message in (({"layers": 5}, "missing encoder"), ({"heads": 3}, "was trained with settings that")):
        settings = {**manifest.config["baseline"], **values}
        reseal(sasrec, inputs={"data": data}, config={**manifest.config, "baseline": settings})
        with pytest.raises(ArtifactError, match=message):
            scorer_of_run(copied, "sasrec", ITEMS)
    weights = (sasrec / "model.safetensors").read_bytes()
    (sasrec / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"model.safetensors: .*other SHA-256"):
        scorer_of_run(copied, "sasrec", ITEMS)
