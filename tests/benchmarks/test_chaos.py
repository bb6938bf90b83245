"""The harness of kills, pairs, full disks and wrong settings: what it counts as a fault, and what it tries."""

import json
import random

import pytest
import yaml

from minionerec.cli import parse
from minionerec.config import Config
from minionerec.config.fields import field_types
from minionerec.errors import ConfigError

pytestmark = pytest.mark.fast


@pytest.fixture
def chaos(script):
    return script("chaos")


@pytest.fixture
def wrong(script):
    return script("wrong_settings")


def test_its_run_is_a_configuration(chaos, tmp_path):
    chaos.write_files(tmp_path / "raw")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(chaos.configuration(tmp_path / "raw", tmp_path / "run", 7)))
    config = parse("run", ["--config", str(path)])
    assert (config.seed, config.folder) == (7, tmp_path / "run") and config.data.source == "csv"


def test_every_field_gets_wrong_values_and_none_ends_in_a_traceback(wrong, tmp_path):
    names = wrong.fields()
    assert {"out", "replace", "wait", "sft.epochs", "rl.rewards"} <= set(names) <= set(field_types(Config))
    refused, path, rng = 0, tmp_path / "wrong.yaml", random.Random(0)
    documents = [{name: rng.choice(wrong.bad_values(name))} for name in rng.sample(names, 20)]
    for document in [*map(yaml.safe_dump, documents), *wrong.DOCUMENTS]:
        path.write_text(document, encoding="utf-8")
        try:
            parse("run", ["--config", str(path)])
        except ConfigError:
            refused += 1
    assert refused > 25


def test_what_is_left_behind_and_what_differs_is_counted(chaos, tmp_path):
    run = tmp_path / "run"
    for name in ("sft/model/weights", "sft/manifest.json", "sft/curves.html", "eval/sft/predictions.jsonl", "run.yaml"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    assert chaos.leftovers(run) == [] and set(chaos.results(run / "sft")) == {"model/weights"}
    for name in ("rl.partial/key.txt", "sft.lock", "sft.lock.0a.new", "run.yaml.7.tmp"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("x")
    assert chaos.leftovers(run) == ["rl.partial", "rl.partial/key.txt", "run.yaml.7.tmp", "sft.lock", "sft.lock.0a.new"]
    trials = [
        {"kind": "kills", "what": "sft killed after 1.0 s", "faults": ["sft differs", "left behind: sft.lock"]},
        {"kind": "pairs", "what": "sft twice: [0, 2]", "faults": []},
        {"kind": "settings", "what": "refused in 0.4 s: sft.epochs '-1'", "faults": ["traceback in wrong.log"]},
        {"kind": "settings", "what": "accepted in 9 s: seed '0'", "faults": ["it ended with 1"]},
    ]
    cells = [list(column.cells) for column in chaos.table(trials).columns]
    assert json.dumps(list(zip(*cells, strict=True))) == json.dumps(
        [
            ["kills", "1", "1", "0", "1", "0", "1 ended well"],
            ["pairs", "1", "0", "0", "0", "0", "1 [0, 2]"],
            ["disks", "0", "0", "0", "0", "0", ""],
            ["settings", "2", "0", "1", "0", "1", "1 accepted, 1 refused"],
        ]
    )
