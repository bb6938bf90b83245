"""The frame of the training stages."""

import pytest
import torch

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
