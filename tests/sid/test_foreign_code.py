import json

import pytest

from minionerec.config import SidConfig
from minionerec.errors import ConfigError
from minionerec.sid.encoder import encode
from minionerec.sid.foreign_code import refuse_foreign_code

pytestmark = pytest.mark.fast

HONEST = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "config.json": {"model_type": "bert", "hidden_act": "gelu", "auto_map": {}, "rope_scaling": {"type": "linear"}},
    "tokenizer.json": {"normalizer": {"type": "BertNormalizer"}},
    "1_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"},
    "router_config.json": {"types": {"a": "sentence_transformers.models.Dense"}},
}


@pytest.fixture
def folder(tmp_path):
    """Write the files of a model, some of them changed; its folder."""

    def write(**changes):
        for name, values in (HONEST | changes).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(values))
        return tmp_path

    return write


def test_a_model_without_code_passes(folder):
    refuse_foreign_code(folder())


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("modules.json", [{"type": "mine.Evil", "path": ""}], "type mine.Evil"),
        ("modules.json", [{"type": "mine", "path": ""}], "type mine"),
        ("modules.json", [{"type": "sentence_transformers_mine.Evil"}], "type sentence_transformers_mine.Evil"),
        ("config.json", {"auto_map": {"AutoModel": "mine.Evil"}}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["mine.Evil", None]}}, "auto_map"),
        ("vision/config.json", {"inner": {"auto_map": {"AutoConfig": "mine.Evil"}}}, "auto_map"),
        ("router_config.json", {"types": {"a": "mine.Evil"}}, "types mine.Evil"),
        ("1_Dense/config.json", {"activation_function": "os.abort"}, "activation_function os.abort"),
    ],
)
def test_code_is_refused_before_anything_is_loaded(folder, file, values, message, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MINIONEREC_CACHE", str(tmp_path_factory.mktemp("cache")))
    path = folder(**{file: values})
    (path / "mine.py").write_text(f"open({str(path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match=rf"{file} names code of the model's own \({message}.*--sid\.vectors"):
        encode(["a text"], SidConfig(encoder=str(path)), seed=1)
    assert not (path / "ran").exists()


def test_what_is_no_json_is_refused(folder):
    path = folder()
    (path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"config\.json is not readable as JSON \(nested too deep"):
        refuse_foreign_code(path)


def test_blanks_do_not_hide_code(folder):
    path = folder(**{"modules.json": [{"type": "mine.Evil", "path": ""}]})
    for name in ("tokenizer.json", "modules.json"):
        with (path / name).open("a") as file:
            file.write(" " * 10_000_000)
    with pytest.raises(ConfigError, match=r"modules\.json has 10,000,\d+ bytes, expected at most 10,000,000"):
        refuse_foreign_code(path)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "../elsewhere"}]),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "/elsewhere"}]),
        ("router_config.json", {"types": {"a/../../elsewhere": "sentence_transformers.models.Dense"}}),
    ],
)
def test_no_module_lies_outside_the_model(folder, file, values):
    with pytest.raises(ConfigError, match=rf"{file} names the folder .*elsewhere, which is not part of the model"):
        refuse_foreign_code(folder(**{file: values}))


def test_a_link_to_another_folder_is_refused(folder, tmp_path_factory):
    path = folder()
    (path / "2_Dense").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ConfigError, match="2_Dense is a link to a folder"):
        refuse_foreign_code(path)
