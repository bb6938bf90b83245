"""Two processes with gloo train a recipe as one does."""

import shutil

import numpy as np
import pytest

from minionerec.artifacts import Manifest
from minionerec.cli import main
from minionerec.training.scored_pairs import read_scores
from tests.data.test_pairs import rated_csv
from tests.launch import forked
from tests.small import losses


def test_two_processes_give_the_losses_and_scores_of_one(tmp_path):
    path, alone, other = rated_csv(tmp_path), tmp_path / "run", tmp_path / "two"
    options = [
        "--lego.task",
        "pairs",
        "--lego.epochs",
        "2",
        "--lego.batch_size",
        "5",
        "--lego.width",
        "8",
        "--lego.dropout",
        "0",
    ]
    options += ["--score.resamples", "60", "--pairs.valid_share", "0.3"]
    assert main(["lego", "--config", str(path), *options]) == 0
    for stage in ("data", "pairs"):
        shutil.copytree(alone / stage, other / stage)
    forked(2, "-m", "minionerec", "lego", "--config", str(path), "--out", str(other), *options)
    folders = [run / "lego" / "pairs" / "naml" for run in (alone, other)]
    for ours, theirs in zip(losses(folders[1]), losses(folders[0]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4) and ours["valid GAUC"] == theirs["valid GAUC"]
    assert [Manifest.load(folder).metrics["devices"] for folder in folders] == [1, 2]
    scores = [read_scores(run / "scoring" / "lego-naml")[1]["score"] for run in (alone, other)]
    np.testing.assert_allclose(*scores, atol=1e-4)
