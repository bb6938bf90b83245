"""Published weights, pickled by torch: imported without running anything of theirs, and compared with the configuration."""

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from minionerec.baselines.importing import import_weights
from minionerec.cli import main
from minionerec.config import BaselineConfig
from minionerec.errors import ArtifactError
from minionerec.model.sequential import make, weights
from tests.model.sequential.models import ITEMS, LENGTH, small

SETTINGS = {"max_history": LENGTH, "hidden_size": 16, "layers": 2, "heads": 2, "inner_size": 32}


@pytest.fixture
def published(tmp_path):
    """A model, and its state dict as torch pickles it."""
    model = small("sasrec", seed=1)
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    return model, tmp_path / "theirs.pt"


def assert_loads(model, path, settings=SETTINGS):
    loaded = small("sasrec", seed=2)
    weights.load(loaded, path, settings)
    for ours, theirs in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_dict_is_imported_and_gives_the_same_weights(published, capsys):
    model, path = published
    main(["baseline", "import", str(path)])
    assert f"{path.with_suffix('.safetensors')}: {len(model.state_dict())} tensors" in capsys.readouterr().out
    assert_loads(model, path.with_suffix(".safetensors"))
    with pytest.raises(ArtifactError, match=r"already there. Delete it, or name another file with --to"):
        import_weights(path, path.with_suffix(".safetensors"))


def test_the_old_format_of_torch_is_read(published, tmp_path):
    model, path = published
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    import_weights(path, tmp_path / "new.safetensors")
    assert_loads(model, tmp_path / "new.safetensors")


def test_a_checkpoint_with_settings_of_another_project_is_imported_without_its_code(published, tmp_path, monkeypatch):
    model, path = published
    module = types.ModuleType("recbole.config.configurator")
    module.Config = type("Config", (), {"__module__": module.__name__})
    for name in ("recbole", "recbole.config", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    config = module.Config()
    config.final_config_dict = {"n_layers": 2, "n_heads": 4, "model": "SASRec"}
    arguments = argparse.Namespace(max_seq_length=LENGTH, seed=1)
    torch.save({"config": config, "args": arguments, "epoch": 3, "state_dict": model.state_dict()}, path)
    monkeypatch.undo()  # their code is not installed here
    imported = import_weights(path, tmp_path / "new.safetensors")
    assert imported.settings == {
        "n_layers": 2,
        "n_heads": 4,
        "model": "SASRec",
        "max_seq_length": LENGTH,
        "seed": 1,
        "epoch": 3,
    }
    with safe_open(imported.path, "pt") as file:
        assert len(file.keys()) == imported.tensors == len(model.state_dict())
    with pytest.raises(
        ArtifactError, match=r"was trained with n_heads 4, but baseline\.heads is 2 here. Set --baseline\.heads 4"
    ):
        weights.load(small("sasrec"), imported.path, SETTINGS)
    assert_loads(model, imported.path, {**SETTINGS, "heads": 4})


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_objects_that_would_have_to_be_run_are_refused(published, tmp_path, monkeypatch):
    _, path = published
    monkeypatch.chdir(tmp_path)
    for kwargs in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Bomb()}, path, **kwargs)
        with pytest.raises(ArtifactError, match=r"theirs\.pt: (holds objects of .*pathlib|not a readable file)"):
            import_weights(path, tmp_path / "new.safetensors")
    torch.save(small("sasrec"), path)
    with pytest.raises(ArtifactError, match=r"holds objects of minionerec.*torch.save\(model.state_dict\(\), FILE\)"):
        import_weights(path, tmp_path / "new.safetensors")
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not a readable file of torch.save"),
        (b"", "not a readable file of torch.save"),
        (b"no pickle at all", "not a readable file of torch.save"),
        ({"epoch": 3}, "holds no state dict"),
        ([torch.ones(1)], "holds no state dict"),
        ({0: torch.ones(1)}, "0 is sparse or quantised, or its name is no text"),
        ({"a": torch.ones(1).to_sparse()}, "'a' is sparse"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path, content, reason):
    path = tmp_path / "theirs.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ArtifactError, match=reason):
        import_weights(path, tmp_path / "new.safetensors")


def test_a_pickle_as_weights_says_how_to_import_it(published):
    with pytest.raises(ArtifactError, match=r"Import it first: minionerec baseline import .*theirs\.pt"):
        weights.load(small("sasrec"), published[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inner_size": 48}, r"baseline\.inner_size is 48 here, and \d+ in the file"),
        ({"layers": 1}, r"The file has more layers than baseline\.layers 1\."),
        ({"layers": 3}, r"The file has fewer layers than baseline\.layers 3\."),
    ],
)
def test_the_setting_that_a_file_contradicts_is_named(published, tmp_path, change, reason):
    _, path = published
    import_weights(path, tmp_path / "new.safetensors")
    with pytest.raises(ArtifactError, match=reason):
        weights.load(small("sasrec", **change), tmp_path / "new.safetensors", {**SETTINGS, **change})
    longer = make(BaselineConfig(protocol="recbole", sequences="-", max_history=15, hidden_size=16), ITEMS)
    with pytest.raises(ArtifactError, match=r"baseline\.max_history is 15 here, and 12 in the file"):
        weights.load(longer, tmp_path / "new.safetensors", {**SETTINGS, "max_history": 15})
