"""The table of RL variants at a tiny size: what it computes, what it refuses, and that it resumes."""

import shlex

import numpy as np
import pytest
import yaml

from minionerec.artifacts import read_json
from minionerec.errors import ConfigError, DataError
from minionerec.eval.lists import RankedLists
from minionerec.eval.predictions import Prediction
from minionerec.pipeline import run
from minionerec.statistics.ranking import gains, hits
from tests.small import config


@pytest.fixture
def rl_table(script):
    return script("rl_table")


def lists(ranks: list[int], targets: list[int] | None = None) -> RankedLists:
    """One user each, whose target (item 0 unless given) stands at its rank in a list of twelve; 12 for a miss."""
    made = []
    for user, rank in enumerate(ranks):
        target = targets[user] if targets else 0
        items = [item for item in range(1, 14) if item != target]
        items = [*items[:rank], target, *items[rank:]][:12]
        sids = [[item] for item in items]
        made.append(Prediction(f"u{user}", [20], target, [target], sids, items, [-float(i) for i in range(12)], True))
    return RankedLists.of(made)


def test_differences_are_means_over_users_and_seeds(rl_table):
    before, seeds = [0, 3, 12, 7] * 20, [[0, 0, 12, 12] * 20, [1, 3, 2, 7] * 20]
    found = rl_table.differences(lists(before), {"a": [lists(seed) for seed in seeds]}, 300, 0)["a"]
    for k in (1, 3, 10):
        by_hand = np.mean([hits(np.array(seed), k).mean() - hits(np.array(before), k).mean() for seed in seeds])
        assert found["metrics"][f"HR@{k}"]["value"] == pytest.approx(by_hand)
    each = [float(gains(np.array(seed), 10).mean() - gains(np.array(before), 10).mean()) for seed in seeds]
    assert found["metrics"]["NDCG@10"]["value"] == pytest.approx(np.mean(each))
    assert found["seeds"]["sd"] == pytest.approx(np.std(each, ddof=1))
    assert found["metrics"]["NDCG@10"]["low"] < np.mean(each) < found["metrics"]["NDCG@10"]["high"]
    assert list(found["metrics"]) == [f"{family}@{k}" for family in ("HR", "NDCG") for k in (1, 3, 5, 10)]  # lists of twelve


def test_the_verdict_names_what_is_beyond_noise(rl_table):
    before = [0, 9] * 50
    found = rl_table.differences(lists(before), {"a": [lists([0, 12] * 50)], "b": [lists(before)]}, 300, 0)
    assert rl_table.verdict(found["b"]["metrics"]) == "better at nothing; worse at nothing"
    words = rl_table.verdict(found["a"]["metrics"])
    assert words.startswith("better at nothing; worse at HR@10")
    assert "HR@5," not in words  # the losers were behind the fifth place


def test_other_examples_are_not_compared(rl_table):
    with pytest.raises(DataError, match="other targets"):
        rl_table.differences(lists([0, 1]), {"a": [lists([0, 1], [0, 5])]}, 10, 0)


def test_every_variant_is_a_configuration(rl_table, tmp_path):
    for name, text in rl_table.VARIANTS.items():
        flags = shlex.split(text)
        made = rl_table.configuration("ml-100k", tmp_path, 1, flags)
        assert made.folder == tmp_path
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            found, wanted = getattr(made.rl, flag.removeprefix("--rl.")), yaml.safe_load(value)
            # Rewards replace the configuration's, they are not added to them; YAML reads 1e-3 as a text.
            assert found == wanted or found == float(wanted), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "nonsense"], "'nonsense' is no variant"),
        (["--add", "rule=--rl.beta 0"], "the name new"),
        (["--variants", "mine", "--add", "mine=--rl.betta 0"], "variant mine: .*unknown field rl.betta"),
        (["--variants", "rule", "--seed", "3"], "--seed: variants differ in fields of rl and eval only"),
        (["--variants", "rule"], "no finished SFT model here"),
    ],
)
def test_what_is_refused_before_anything_is_trained(rl_table, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        rl_table.main([str(tmp_path / "run"), "--config", "ml-100k", "--out", str(tmp_path / "out"), *arguments])
    assert not list((tmp_path / "out").glob("*/rl*"))


def test_what_is_only_asked_for_is_printed(rl_table, tmp_path, capsys):
    rl_table.main([str(tmp_path), "--config", "ml-100k", "--out", str(tmp_path / "out"), "--print_config"])
    assert "num_beams: 50" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_fields_of_other_sections(rl_table, tmp_path):
    with pytest.raises(ConfigError, match=r"--data\.user_k"):
        rl_table.configuration("ml-100k", tmp_path, 1, ["--data.user_k", "9"])


@pytest.mark.slow
def test_a_table_from_one_sft_run_and_again(rl_table, tmp_path, capfd):
    prepared = config(tmp_path)
    run(prepared, ("data", "sid", "sft"))
    files = {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")}
    command = [str(prepared.folder), "--config", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out")]
    command += ["--seeds", "1", "--variants", "rule", "none", "--add", "none=--rl.learning_rate 1e-12"]
    rl_table.main(command)
    printed = capfd.readouterr().out
    assert "| rule - SFT |" in printed
    stored = read_json(tmp_path / "out/table.json")
    assert stored["none"]["metrics"]["HR@10"]["value"] == 0  # a model that does not move changes nothing
    made = [tmp_path / f"out/{name}/seed-1/rl/manifest.json" for name in ("rule", "none")]
    assert [read_json(path)["seed"] for path in made] == [1, 1]
    assert {path: path.stat().st_mtime_ns for path in prepared.folder.rglob("*")} == files  # only read
    before = [path.stat().st_mtime_ns for path in made]
    rl_table.main(command)
    assert [path.stat().st_mtime_ns for path in made] == before
    assert read_json(tmp_path / "out/table.json") == stored
