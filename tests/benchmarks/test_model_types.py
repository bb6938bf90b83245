"""The sweep over the causal model types of transformers: a few by default, all of them when slow tests are asked for."""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

EXPECTED = {
    "gemma3": "equal",
    "gemma3n_text": "equal",
    "gemma4_text": "equal",
    "granitemoehybrid": "equal",
    "qwen3": "equal",
    "bamba": "refused",
    "falcon_h1": "refused",
    "mamba2": "refused",
    "qwen3_next": "refused",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_type_is_equal_or_refused(script, kind):
    assert script("model_types").result(kind).outcome == EXPECTED[kind]


@pytest.mark.slow
def test_no_type_is_different(script):
    sweep = script("model_types")
    outcomes = {kind: sweep.result(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert not [result for result in outcomes.values() if result.outcome == "different"]
    assert sum(result.outcome == "equal" for result in outcomes.values()) > 100
    assert sum(result.outcome == "not built" for result in outcomes.values()) < 25
