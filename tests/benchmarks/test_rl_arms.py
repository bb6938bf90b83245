"""The four arms at a tiny size: what they are trained with, what is compared, what is refused, and that the table resumes."""

from argparse import Namespace

import numpy as np
import pytest

from minionerec.artifacts import Manifest, read_json
from minionerec.report.gap_causes import CAUSES
from minionerec.statistics.ranking import gains, hits
from tests.benchmarks.test_rl_table import lists
from tests.small import write_config


@pytest.fixture
def rl_arms(script):
    return script("rl_arms")


def test_every_arm_is_a_configuration_and_only_arms_with_rl_hold_rows_out(rl_arms, tmp_path):
    common = ["--rl.holdout", "users", "--rl.holdout_share", "0.3", "--rl.prompts", "holdout"]
    longer = rl_arms.longer_sft({"sft": 8.0, "rl": 3.0, "whole": 10.0}, 20.0, 10)
    assert longer == {"epochs": 22.0, "evaluations": 11}
    for name, arm in rl_arms.ARMS.items():
        fields = rl_arms.fields_of(arm, common, longer)
        config = rl_arms.configuration(Namespace(config="industrial-tiny"), tmp_path, 3, fields)
        assert config.sft.best_metric == ("loss" if name.startswith("loss") else "NDCG@10")
        with_rl = name.endswith("-rl")
        assert (config.rl.holdout, config.rl.prompts) == (("users", "holdout") if with_rl else ("none", "train"))
        assert (config.sft.epochs, config.sft.evaluations) == ((20.0, 10) if with_rl else (22.0, 11))
        assert config.sft.patience == config.rl.patience == 10_000


def test_comparisons_are_means_over_users_and_seeds(rl_arms):
    rng = np.random.default_rng(0)
    names = (*rl_arms.ARMS, *rl_arms.STARTS)
    ranks = {name: [rng.integers(0, 14, 80).tolist() for _ in range(2)] for name in names}
    found = rl_arms.results({name: [lists(seed) for seed in seeds] for name, seeds in ranks.items()}, 10)
    assert {*found["comparisons"]} == {*rl_arms.COMPARISONS}
    assert {name for cause in CAUSES for name in cause.comparisons} <= {*rl_arms.COMPARISONS}  # the report finds them
    for metric, of in (("NDCG@10", gains), ("HR@10", hits)):
        means = {name: [of(np.array(seed), 10).mean() for seed in seeds] for name, seeds in ranks.items()}
        for name, values in means.items():
            assert found["models"][name][metric] == pytest.approx(values)
        for name, (before, after) in rl_arms.COMPARISONS.items():
            change = found["comparisons"][name][metric]["value"]
            assert change == pytest.approx(np.mean(means[after]) - np.mean(means[before]))


def test_some_arms_are_compared_where_both_are_there(rl_arms):
    some = {name: [lists([1, 3, 12])] for name in ("ranking", "ranking-rl", "ranking-start")}
    assert {*rl_arms.results(some, 10)["comparisons"]} == {
        "RL after SFT chosen by ranking, against more SFT",
        "RL against the SFT it began with, chosen by ranking",
    }


def test_arms_without_rl_have_no_length(rl_arms, tmp_path, capsys):
    with pytest.raises(SystemExit):
        rl_arms.main(["--config", "industrial-tiny", "--out", str(tmp_path / "out"), "--arms", "loss", "ranking"])
    assert "--arms loss ranking: name an arm with RL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--rl.prompts", "valid", "--rl.evaluations", "0"], "the arms are chosen and compared on valid"),
        (["--eval.num_beams", "5", "--rl.best_metric", "HR@5"], "the metrics look at 10 places"),
        (["--sft.dropuot", "0"], r"unknown field sft\.dropuot"),
    ],
)
def test_what_is_refused_before_anything_is_made(rl_arms, tmp_path, fields, message):
    with pytest.raises(SystemExit, match=message):
        rl_arms.main(["--config", "industrial-tiny", "--out", str(tmp_path / "out"), *fields])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_and_again(rl_arms, tmp_path, capfd):
    path = write_config(tmp_path)
    command = [
        "--config",
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "1",
        "--sft.epochs",
        "4",
        "--sft.evaluations",
        "2",
    ]
    command += ["--rl.holdout", "last", "--rl.holdout_share", "0.8", "--rl.prompts", "holdout", "--rl.evaluations", "2"]
    rl_arms.main(command)
    printed = capfd.readouterr().out
    assert "| RL after SFT chosen by loss, against more SFT |" in printed
    stored, out = read_json(tmp_path / "out/valid.json"), tmp_path / "out"
    assert stored["longer_sft"]["epochs"] > 4
    seen = {
        name: Manifest.load(out / name / "seed-1/sft").metrics["tasks"]["history_sid_to_sid"]["examples"]
        for name in rl_arms.ARMS
    }
    assert seen["loss"] == seen["ranking"] > seen["loss-rl"] == seen["ranking-rl"]
    prompts = Manifest.load(out / "loss-rl/seed-1/rl").metrics["prompts"]
    assert seen["loss"] - seen["loss-rl"] - 8 < prompts <= seen["loss"] - seen["loss-rl"]  # whole steps of 8
    made = sorted(out.glob("*/seed-*/**/manifest.json"))
    times = [file.stat().st_mtime_ns for file in made]
    rl_arms.main(command)
    assert [file.stat().st_mtime_ns for file in made] == times
    rl_arms.main([*command, "--test"])
    assert [file.stat().st_mtime_ns for file in made] == times
    assert read_json(out / "rl_arms.json")["split"] == "test"
