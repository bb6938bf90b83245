"""An exported folder is served as a run is, and checked over HTTP."""

import pytest

from minionerec.config import ServeConfig
from minionerec.recommend import check
from minionerec.recommend.export import export
from minionerec.serve.app import create_app
from minionerec.serve.served import ServedModel
from tests.recommend.conftest import write_run
from tests.serve.conftest import Client


@pytest.mark.parametrize("exclude_history", [False, True])
def test_an_exported_folder_is_served_and_checked(make, tmp_path, monkeypatch, exclude_history):
    folder = tmp_path / "bundle"
    export(write_run(tmp_path / "run", make(num_beams=8, exclude_history=exclude_history)), folder)
    model = ServedModel.load(folder, ServeConfig())
    model.check()
    assert model.stage == "sft" and len(model.golden) == 12
    post = lambda url, body: Client(create_app(model))("POST", "/v1/recommend", json=body).json()  # noqa: E731
    monkeypatch.setattr(check, "_post", post)
    assert check.main(["--engine", "server", "--folder", str(folder)]) == 0
