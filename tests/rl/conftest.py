"""The toy's policy, made once for all tests of RL; they only read it."""

from pathlib import Path

import pytest

from tests.rl.toy import policy_folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))
