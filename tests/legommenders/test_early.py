import pytest

from minionerec import pipeline
from minionerec.config import Config, GreenConfig, LegoConfig, LegoPlmConfig, extras
from minionerec.errors import ConfigError
from minionerec.sid import sentence_encoders

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"lego": LegoConfig(recipe="plm-nr")}, r"lego\.plm\.path minilm needs the package"),
        (
            {"lego": LegoConfig(recipe="plm-nr", plm=LegoPlmConfig("folder", tune_from=-1, lora_rank=2))},
            r"lego\.plm\.lora_rank needs peft",
        ),
        (
            {"lego": LegoConfig(recipe="plm-nr", plm=LegoPlmConfig("/no/model"))},
            r"lego\.plm\.path /no/model: no such folder",
        ),
        ({"green": GreenConfig("DEU")}, r"green\.country needs codecarbon"),
    ],
)
def test_what_is_not_installed_is_refused_before_data_are_prepared(tmp_path, monkeypatch, sections, message):
    monkeypatch.setattr(sentence_encoders.util, "find_spec", lambda _: None)
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("peft", "codecarbon") else True)
    with pytest.raises(ConfigError, match=message):
        pipeline.run(Config(out=str(tmp_path / "run"), **sections), ("data", "sid", "lego"))
    assert not (tmp_path / "run").exists()
