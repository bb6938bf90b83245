import json
import shutil
import subprocess
import sys

import pytest

import minionerec
from minionerec.errors import ArtifactError, ConfigError, DataError
from minionerec.eval.predictions import read_predictions
from minionerec.pipeline import run
from minionerec.recommend.recommender import Recommender
from tests import small


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of both training stages, and its configuration."""
    config = small.config(tmp_path_factory.mktemp("run"), sft={"epochs": 1}, rl={"max_examples": 8, "evaluations": 0})
    run(config, ("data", "sid", "sft", "rl", "eval"))
    return config


@pytest.mark.parametrize("stage", ["sft", "rl", None])
def test_a_loaded_model_recommends_what_its_evaluation_lists(finished, stage):
    recommender = Recommender.load(str(finished.folder), stage)
    predictions = read_predictions(finished.folder / "eval" / (stage or "rl") / "predictions.jsonl")
    for start in range(0, len(predictions), 16):
        batch = predictions[start : start + 16]
        result = recommender.recommend([prediction.history for prediction in batch], num_beams=10)
        for prediction, leaves, scores in zip(batch, result.leaves.tolist(), result.scores.tolist(), strict=True):
            assert [item for leaf in leaves for item in recommender.trie.items(leaf)] == prediction.items
            assert [round(score, 6) for score in scores] == prediction.scores


def test_hidden_items_are_not_recommended(finished):
    recommender = Recommender.load(finished.folder)
    history = [0, 5, 7]
    free = recommender.recommend([history], num_beams=48).leaves[0].tolist()
    top = recommender.trie.items(free[0])
    hiding = recommender.recommend([history], num_beams=48, hidden=[top]).leaves[0].tolist()
    assert [leaf for leaf in hiding if leaf >= 0] == [leaf for leaf in free[1:] if leaf >= 0]


def test_there_must_be_a_history(finished):
    recommender = Recommender.load(finished.folder)
    for histories in ([], [[]]):
        with pytest.raises(DataError, match="history"):
            recommender.recommend(histories, num_beams=5)


def copied(finished, folder):
    shutil.copytree(finished.folder, folder)
    return folder


def test_a_run_without_rl_gives_the_sft_model(finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    shutil.rmtree(folder / "rl")
    expected = read_predictions(folder / "eval/sft/predictions.jsonl")[0]
    result = Recommender.load(folder).recommend([expected.history], num_beams=10)
    assert [round(score, 6) for score in result.scores[0].tolist()] == pytest.approx(expected.scores, abs=1e-5)
    with pytest.raises(ArtifactError, match=r"rl: no finished artefact here\. Make it first: minionerec rl"):
        Recommender.load(folder, "rl")


def test_what_does_not_belong_together_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="stage eval: no such training stage; expected one of sft, rl"):
        Recommender.load(finished.folder, "eval")
    with pytest.raises(ArtifactError, match="no finished artefact here"):
        Recommender.load(tmp_path / "nothing")
    folder = copied(finished, tmp_path / "run")
    manifest = json.loads((folder / "rl/manifest.json").read_text())
    manifest["inputs"]["sid"] = "0" * 64
    (folder / "rl/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="rl: was made from another sid than the one in this run"):
        Recommender.load(folder)
    manifest = json.loads((folder / "sft/manifest.json").read_text())
    manifest["config"]["prompts"]["words"] = "0" * 64
    (folder / "sft/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"sft was trained with other prompts \(words"):
        Recommender.load(folder, "sft")


def test_the_package_shows_it_without_importing_torch():
    assert minionerec.Recommender is Recommender
    code = "import sys, minionerec, minionerec.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = minionerec.Recomender
