"""What the tests of semantic IDs that learn from a run's baseline share."""

import pytest

from minionerec.artifacts import Manifest
from minionerec.config import Config
from minionerec.errors import ArtifactError
from minionerec.pipeline import run


def sids_that_ask_a_baseline(made: Config) -> Manifest:
    """Make SIDs through the stages: the baseline `sasrec` is needed first and becomes an input. Returns their manifest."""
    run(made, ("data",))
    with pytest.raises(ArtifactError, match=r"baselines/sasrec: no finished artefact.*minionerec baseline"):
        run(made, ("sid",))
    run(made, ("baseline", "sid"))
    manifest = Manifest.load(made.folder / "sid")
    assert manifest.inputs["baselines/sasrec"] == Manifest.load(made.folder / "baselines/sasrec").digest
    return manifest
