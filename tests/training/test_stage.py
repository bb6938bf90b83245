"""The frame of the training stages."""

import os
import subprocess
import sys

import pytest
import torch

from minionerec.artifacts import read_json
from minionerec.errors import ArtifactError
from minionerec.model.checkpoint import sid_token_ids
from minionerec.pipeline import run
from minionerec.sft.train import starting_model
from minionerec.training.stage import begin
from tests import small


def test_a_training_begins_with_data_sids_model_and_prompts(tmp_path):
    config = small.config(tmp_path)
    with pytest.raises(ArtifactError, match="minionerec data prepare"):
        begin(config, "sft", lambda dataset, index: starting_model(config, dataset, index))
    run(config, ("data", "sid"))
    draws = []
    for _ in range(2):
        begun = begin(config, "sft", lambda dataset, index: starting_model(config, dataset, index))
        draws.append(torch.rand(1).item())  # the seed holds for what follows
    assert draws[0] == draws[1]
    prompts = begun.prompts
    assert (prompts.config.wording, prompts.context) == ("plain", 2048)
    assert begun.parameters == sum(parameter.numel() for parameter in begun.model.parameters())
    assert torch.equal(prompts.sid_tokens, sid_token_ids(prompts.tokenizer, prompts.index))
    tokens = prompts.sid_tokens.unique().tolist()
    assert prompts.sid_token_set == tokens and len(prompts.sid_tokens) == len(prompts.dataset.catalog)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_training_on_cpus_says_so_and_warns_of_no_accelerator(tmp_path):
    run(small.config(tmp_path, sft={"epochs": 1, "tasks": ["history_sid_to_sid"]}), ("data", "sid"))
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "minionerec", "sft", "--config", str(tmp_path / "small.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    printed = done.stdout + done.stderr
    assert "sft: 1 process on the CPU, not distributed; 4 trees x 2 micro-batches per process and step" in printed
    assert "accelerator" not in printed.lower()
    metrics = read_json(tmp_path / "run/sft/manifest.json")["metrics"]
    assert metrics["distributed"] == "NO" and metrics["tasks"].keys() == {"history_sid_to_sid"}
