"""The toy's policy, made once for all tests of RL; they only read it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def policy(tmp_path_factory) -> Path:
    from tests.rl.toy import policy_folder  # not above: its imports would slow the fast tests of this folder down

    return policy_folder(tmp_path_factory.mktemp("policy"))
