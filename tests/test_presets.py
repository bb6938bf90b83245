"""The configurations that ship with the package."""

import dataclasses
import functools

import pytest

from minionerec import presets
from minionerec.artifacts import read_json
from minionerec.cli import main, parse
from minionerec.config.documents import parse_yaml
from minionerec.config.run_file import recording
from minionerec.model.pretrained import PUBLISHED
from minionerec.training.launch import split_batch
from tests.shared import shared

NAMES = {"industrial": "Industrial_and_Scientific", "office": "Office_Products"}
LARGE = [f"{name}-qwen2.5-{size}" for name in NAMES for size in ("0.5b", "1.5b")]


@pytest.mark.parametrize("name", presets.files())
def test_every_preset_comes_back_from_what_is_printed(name, tmp_path, capsys):
    assert main(["run", "--config", name, "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(printed)
    config = parse("run", ["--config", str(tmp_path / "resolved.yaml")])
    assert config.name == name and parse_yaml(printed) == dataclasses.asdict(config)  # every field, and nothing else


@pytest.mark.parametrize("name", ["ml-100k", "industrial-pairs", "industrial-lazy", "office-smollm2", "lastfm-wearec"])
def test_presets_come_back_from_their_runs_file(name, tmp_path):
    """One of each kind: it is the same YAML as what is printed."""
    config = parse("run", ["--config", name, "--out", str(tmp_path / "run")])
    with recording(config, "data"):
        (tmp_path / "run/data").mkdir()
    assert parse("run", ["--config", config.out]) == config


@functools.cache
def preset(name):
    """The tests only read it."""
    return parse("run", ["--config", name])


@pytest.mark.parametrize("name", [*LARGE, *(f"{name}-{kind}" for name in NAMES for kind in ("tiny", "smollm2"))])
def test_the_paper_s_data_and_beams(name):
    made = preset(name)
    assert made.data.source == "released" and made.data.category == NAMES[name.partition("-")[0]]
    assert made.sid.shipped and made.data.max_history == 10
    assert made.eval.num_beams == 50 and made.rl.num_generations == 16
    assert made.model.init == ("from_scratch" if name.endswith("tiny") else "from_pretrained")


@pytest.mark.parametrize("name", LARGE)
def test_the_replication_s_values(name):
    setup = read_json(shared("reference/minionerec.json"))["datasets"]["Industrial_and_Scientific"]["setup"]
    made = preset(name)
    sft, rl = setup["SFT"], setup["RL (GRPO, 2 epochs)"]
    assert made.sft.batch_size == int(sft["Global batch size"]) and made.sft.history_stride == 1
    assert made.sft.micro_batch == int(sft["Micro batch size"])
    assert sft["Learning rate"].startswith("3e-4") and made.sft.learning_rate == 3e-4 and made.sft.schedule == "cosine"
    assert sft["Max epochs"] == f"{made.sft.epochs:g} (early stopping patience={made.sft.patience})"
    assert made.rl.num_generations == int(rl["Num generations"]) and made.rl.epochs == int(rl["Num epochs"])
    assert rl["Effective batch size"].startswith(f"{made.rl.prompts_per_step * made.rl.num_generations} ")
    assert made.rl.micro_batch_prompts * made.rl.num_generations == int(rl["Per-device batch size"])
    assert made.rl.learning_rate == 1e-5 and made.rl.beta == float(rl["Beta (KL penalty)"])
    assert made.rl.rewards == {rl["Reward type"].split()[0]: 1.0}
    assert rl["Sync ref model"] == "True" and (made.rl.sync_reference, made.rl.sync_mix) == (512, 0.6)


@pytest.mark.parametrize(("name", "examples"), [("industrial", 152_352), ("office", 162_500)])
@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_the_released_values(name, examples, size):
    made = preset(f"{name}-qwen2.5-{size}")
    assert made.sft.tasks == "released" and made.prompts.max_tokens == 512 and made.prompts.style == "alpaca"
    steps = examples // made.sft.batch_size * made.sft.epochs
    assert round(made.sft.warmup * steps) == 20
    assert made.sft.weight_decay == 0 and made.sft.evaluations == 20


@pytest.mark.parametrize("name", [*NAMES, "ml-100k"])
def test_a_published_model_of_the_package_for_one_gpu(name):
    made = preset(f"{name}-smollm2")
    assert made.model.path in PUBLISHED and made.model.init == "from_pretrained"
    assert made.sft.normalise_over == made.rl.normalise_over == made.eval.normalise_over == "catalog"
    assert made.sft.micro_batch == made.sft.batch_size and made.rl.micro_batch_prompts == made.rl.prompts_per_step
    assert made.sft.evaluations == made.sft.epochs and made.sft.best_metric == "NDCG@10" and made.sft.bf16 and made.rl.bf16
    without_gpu = parse("sft", ["--config", f"{name}-smollm2", "--sft.max_examples", "64", "--sft.bf16", "false"])
    assert without_gpu is not None and without_gpu.sft.max_examples == 64 and not without_gpu.sft.bf16


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_batches_split_over_any_usual_number_of_devices(name, devices):
    made = preset(name)
    sft = split_batch("sft.batch_size", made.sft.batch_size, "sft.micro_batch", made.sft.micro_batch, devices)
    assert sft == (16, 64 // devices)
    rl = split_batch(
        "rl.prompts_per_step", made.rl.prompts_per_step, "rl.micro_batch_prompts", made.rl.micro_batch_prompts, devices
    )
    assert rl == (4, 16 // devices)


def test_there_are_presets():
    assert "ml-100k" in presets.files()


def test_the_list_of_presets(capsys):
    assert main(["presets"]) == 0
    ours, baselines = capsys.readouterr().out.split("Presets of `minionerec baseline`:")
    for name, path in presets.files().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ") and first.endswith(".") and len(first) <= 120
        group = baselines if "\nbaseline:\n" in path.read_text(encoding="utf-8") else ours
        assert f"  {name} " in group and first.removeprefix("# ") in group
