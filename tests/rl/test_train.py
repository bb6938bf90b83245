import json

import pytest

from minionerec.artifacts import read_json
from minionerec.errors import ConfigError
from minionerec.pipeline import run
from tests.launch import accelerate
from tests.small import config


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    options = {
        "rollouts": "stochastic",
        "add_target": True,
        "dynamic_sampling": "filter",
        "sft_weight": 0.1,
        "sync_reference": 4,
    }
    made = config(tmp_path_factory.mktemp("rl"), rl=options)
    run(made, ("data", "sid", "sft"))
    return made


def test_zero2_on_two_processes_takes_the_single_process_steps(prepared):
    logs = []
    for processes in (1, 2):
        if processes == 1:
            run(prepared, ("rl",))
        else:
            (prepared.folder / "rl/manifest.json").unlink()
            path = str(prepared.folder.parent / "small.yaml")
            accelerate(2, "--config_file", "rl/zero2.yaml", "rl/train.py", "--config", path)
        assert read_json(prepared.folder / "rl/manifest.json")["metrics"]["devices"] == processes
        lines = (prepared.folder / "rl/log.jsonl").read_text().splitlines()
        logs.append([row for row in map(json.loads, lines) if "reward" in row])
    assert len(logs[0]) == len(logs[1]) == 8
    assert sum(row["HR@4"] for row in logs[0]) > 0
    for name in ("reward", "HR@4", "kl", "entropy", "sft_loss", "groups_without_signal"):
        assert logs[1][0][name] == pytest.approx(logs[0][0][name], rel=1e-4, abs=1e-5)
    # Adam divides rounding noise by its own size, so later steps drift apart a little and near ties may swap places.
    for alone, together in zip(*logs, strict=True):
        assert together["entropy"] == pytest.approx(alone["entropy"], rel=2e-2)


def test_a_group_larger_than_the_catalogue(prepared):
    prepared.rl.num_generations = 64
    with pytest.raises(ConfigError, match="num_generations is 64, but the catalogue has only 48 SIDs"):
        run(prepared, ("rl",))
    prepared.rl.num_generations = 4
