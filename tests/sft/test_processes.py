"""SFT by two processes with DDP and ZeRO-2: real launches by `accelerate`, interrupted ones, and what they leave."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from minionerec.artifacts import read_json
from minionerec.config import ModelConfig
from minionerec.data.dataset import Dataset
from minionerec.model import checkpoint, scratch
from minionerec.pipeline import run
from minionerec.sft.train import starting_model
from minionerec.sid.index import SidIndex
from tests.launch import accelerate, forked, machines, torchrun
from tests.small import losses

SIZES = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=400)


def assert_same_curve(folder, alone):
    log, expected = losses(folder), losses(alone)
    assert len(log) == len(expected)
    for ours, theirs in zip(log, expected, strict=True):
        assert ours["step"] == theirs["step"]
        for name in theirs.keys() & {"loss", "eval_loss", "grad_norm", "learning_rate"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


@pytest.fixture
def options(prepared):
    """The command line's options for a run in another folder."""
    return lambda made: ["--config", str(prepared.folder.parent / "small.yaml"), "--out", made.out]


@pytest.mark.parametrize("launch", [forked, pytest.param(accelerate, marks=pytest.mark.slow)])
def test_two_processes_give_the_single_process_losses(alone, copy, options, launch):
    made = copy()
    done = launch(2, "sft/train.py", *options(made), "--sft.micro_batch", "2")
    assert done.stdout.count("sft: 2 processes on CPUs (DDP); 2 trees x 2 micro-batches per process and step") == 1
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert (metrics["devices"], metrics["distributed"]) == (2, "MULTI_CPU")
    assert_same_curve(made.folder / "sft", alone)


@pytest.mark.slow
def test_two_machines_are_one_world(alone, copy, options):
    """Each started two processes of its own once, and both worlds wrote one folder."""
    made = copy()
    first, second = machines(2, "sft/train.py", *options(made), "--sft.micro_batch", "2")
    assert first.stdout.count("sft: 2 processes on CPUs (DDP); 2 trees x 2 micro-batches per process and step") == 1
    assert "sft:" not in second.stdout
    assert read_json(made.folder / "sft/manifest.json")["metrics"]["devices"] == 2
    assert_same_curve(made.folder / "sft", alone)


def test_killed_under_zero2_and_resumed_by_two_ranks_or_by_one(alone, copy, options, tmp_path):
    """Both resume with the curve of the run that was left alone, from the last checkpoint, whoever wrote it."""
    made = copy()
    killed = forked(2, "tests/sft/killed.py", "14", *options(made), zero2="sft/zero2.yaml", check=False)
    assert killed.returncode == 9, killed.stdout
    partial = made.folder / "sft.partial"
    steps = [int(path.parent.name.partition("-")[2]) for path in (partial / "checkpoints").glob("*/complete.json")]
    assert max(steps) == 12
    shutil.copytree(partial, tmp_path / "partial")

    again = forked(2, "sft/train.py", *options(made), "--sft.micro_batch", "2", zero2="sft/zero2.yaml")
    assert again.stdout.count("sft: 2 processes on DeepSpeed ZeRO-2; 2 trees x 2 micro-batches per process and step") == 1
    assert_same_curve(made.folder / "sft", alone)
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert (metrics["devices"], metrics["distributed"]) == (2, "DEEPSPEED")
    shutil.rmtree(made.folder / "sft")
    shutil.copytree(tmp_path / "partial", partial)
    run(made, ("sft",))
    assert_same_curve(made.folder / "sft", alone)
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert (metrics["devices"], metrics["distributed"]) == (1, "NO")


@pytest.mark.slow
def test_torchrun_starts_all_again_when_one_is_killed(alone, copy, options):
    """They resume from the last checkpoint, with the curve of the run that was left alone."""
    made = copy()
    done = torchrun(2, 1, "tests/sft/killed.py", "14", *options(made), "--sft.micro_batch", "2")
    assert done.stdout.count("sft: 2 processes on CPUs (DDP)") == 2  # before and after
    assert "would not find each other" not in done.stdout + done.stderr
    assert_same_curve(made.folder / "sft", alone)
    metrics = read_json(made.folder / "sft/manifest.json")["metrics"]
    assert (metrics["devices"], metrics["distributed"]) == (2, "MULTI_CPU")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "launcher"), [("gradient", "ddp"), ("gradient", "zero2"), ("loss", "ddp"), ("loss", "zero2")])
def test_what_is_no_number_on_one_rank_stops_all(prepared, tmp_path, what, launcher):
    """Two processes with accumulation; the checkpoint before the step stays, and the batch of the rank that saw it is kept."""
    config_of = ["--config", str(prepared.folder.parent / "small.yaml"), "--out", str(tmp_path), "--sft.micro_batch", "2"]
    for stage in ("data", "sid"):
        shutil.copytree(prepared.folder / stage, tmp_path / stage)
    options = ["--config_file", "sft/zero2.yaml"] if launcher == "zero2" else []
    done = accelerate(2, *options, "tests/sft/spoiled.py", what, "8", *config_of, check=False)
    assert done.returncode and f"The {what} of step 8 is not finite" in " ".join((done.stdout + done.stderr).split())
    assert [path.parent.name for path in tmp_path.glob("sft.partial/checkpoints/*/complete.json")] == ["checkpoint-6"]
    kept = sorted(path.name for path in (tmp_path / "sft-failed").iterdir())
    assert kept and (what == "gradient" or kept == ["not-finite-step-8-process-1.safetensors"])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_sid_rows_under_zero2_leave_all_else_bit_for_bit(prepared, tmp_path, tied, precision):
    """DeepSpeed casts the whole model to bfloat16; what is saved has the base's own float32 weights."""
    _, tokenizer = scratch.create(["any text of theirs", "lamp chair table number"], SIZES, 0)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes))
    checkpoint.save(base, tokenizer, tmp_path / "base")
    for stage in ("data", "sid"):
        shutil.copytree(prepared.folder / stage, tmp_path / "run" / stage)
    fields = ["--sft.train", "sid_rows", "--sft.bf16", str(precision == "bf16").lower(), "--sft.epochs", "2", "--out"]
    model = ["--model.init", "from_pretrained", "--model.path", str(tmp_path / "base")]
    config_of = ["--config", str(prepared.folder.parent / "small.yaml"), *fields, str(tmp_path / "run"), *model]
    accelerate(2, "--mixed_precision", precision, "--config_file", "sft/zero2.yaml", "sft/train.py", *config_of)
    made = replace(prepared, model=ModelConfig(init="from_pretrained", path=str(tmp_path / "base")))
    dataset = Dataset.load(prepared.folder / "data")
    index = SidIndex.load(prepared.folder / "sid", dataset)
    before, words = starting_model(made, dataset, index)
    rows = checkpoint.sid_token_ids(words, index).unique()
    after = checkpoint.load(tmp_path / "run/sft/model")[0].state_dict()
    saved = load_file(tmp_path / "run/sft/model/model.safetensors")
    assert {values.dtype for values in saved.values()} == {torch.float32}
    assert before.state_dict().keys() == after.keys()
    for name, values in before.state_dict().items():
        changed = (values != after[name]).view(len(values), -1).any(1).nonzero()[:, 0]
        assert torch.equal(changed, rows if name in ("model.embed_tokens.weight", "lm_head.weight") else rows[:0]), name


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "precision"), [(["--sft.train", "lora"], "no"), (["--sft.bf16", "true"], "bf16")])
def test_adapters_and_bfloat16_killed_and_resumed_under_zero2(alone, copy, options, tmp_path, fields, precision):
    """Three launches of two ranks: undisturbed, killed, resumed with the same curve; from a model that was trained before."""
    shutil.copytree(alone / "model", tmp_path / "base")
    base = ["--model.init", "from_pretrained", "--model.path", str(tmp_path / "base")]
    launcher = ["--mixed_precision", precision, "--config_file", "sft/zero2.yaml"]
    undisturbed, made = copy("undisturbed"), copy()
    accelerate(2, *launcher, "sft/train.py", *options(undisturbed), *base, *fields)
    killed = accelerate(2, *launcher, "tests/sft/killed.py", "14", *options(made), *base, *fields, check=False)
    assert re.search("exitcode *: 9", killed.stdout + killed.stderr), killed.stdout + killed.stderr
    assert list((made.folder / "sft.partial/checkpoints").glob("*/complete.json"))
    accelerate(2, *launcher, "sft/train.py", *options(made), *base, *fields)
    assert_same_curve(made.folder / "sft", undisturbed.folder / "sft")
