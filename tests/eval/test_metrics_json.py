import json
from dataclasses import replace

import pytest

from minionerec.errors import ArtifactError
from minionerec.eval.metrics import measure
from minionerec.eval.metrics_json import Metrics
from tests.eval.samples import random_predictions

pytestmark = pytest.mark.fast

METRICS = replace(measure(random_predictions(), resamples=20), search={"rows": 3, "num_beams": 10})


def test_what_is_written_is_read_again(tmp_path):
    METRICS.write(tmp_path / "metrics.json")
    assert Metrics.read(tmp_path / "metrics.json") == METRICS
    text = (tmp_path / "metrics.json").read_text()
    assert list(json.loads(text))[:5] == ["users", "rows", "lengths", "exact", "invalid"]
    Metrics.read(tmp_path / "metrics.json").write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("lost"), "lost is missing"),
        (lambda values: values["sid"].pop("MRR@3"), "sid.MRR@3 is missing"),
        (lambda values: values.update(item=None), "item.HR@1 is missing"),
        (lambda values: values["search"].pop("num_beams"), "search.num_beams is missing"),
        (lambda values: values.update(auc=0.5), "auc is unknown"),
    ],
)
def test_a_file_of_another_version_is_refused(change, message, tmp_path):
    values = json.loads(json.dumps(METRICS.as_dict()))
    change(values)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(values))
    with pytest.raises(
        ArtifactError, match=f"{message}, so another version of MiniOneRec wrote it. Delete .* and evaluate again"
    ):
        Metrics.read(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(ArtifactError, match="found list, expected an object"):
        Metrics.read(tmp_path / "metrics.json")
