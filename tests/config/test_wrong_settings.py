"""Every wrong value of every field ends in a ConfigError that names the field, and in nothing else."""

import dataclasses
import random

import pytest
import yaml

from benchmarks.wrong_settings import wrong_settings
from minionerec.cli import main
from minionerec.cli.mistakes import _check_field
from minionerec.config import Config
from minionerec.config.fields import field_bounds, field_types, fits
from minionerec.errors import ConfigError

pytestmark = pytest.mark.fast

TYPES = field_types(Config)
SETTINGS = list(wrong_settings())
DEFAULTS = Config()


def configure(field, value):
    """What reading a file with this one field does."""
    _check_field(field, value, "mine.yaml")
    sections, names = [DEFAULTS], field.split(".")
    for name in names[:-1]:
        sections.append(getattr(sections[-1], name))
    for section, name in zip(reversed(sections), reversed(names), strict=True):
        value = dataclasses.replace(section, **{name: value})  # of the whole configuration at last, which checks its sections


def test_each_is_refused_by_its_name():
    accepted = []
    for setting in SETTINGS:
        try:
            configure(*setting)
            accepted.append(setting)
        except ConfigError as error:
            assert setting.field in str(error) and len(str(error)) < 1500, (setting, error)
    assert accepted == []


def test_every_number_has_bounds_and_its_default_is_within():
    numbers = {name for name, kind in TYPES.items() if any(fits(value, kind) and not fits(["x"], kind) for value in (7, [7]))}
    texts = {name for name, kind in TYPES.items() if fits("x", kind)}
    assert numbers - texts | {"rl.rewards"} == set(field_bounds(Config))
    Config()  # the defaults


SHORT = [setting for setting in SETTINGS if len(str(setting.value)) < 2000]  # the parser takes seconds for a list of thousands


@pytest.mark.parametrize("setting", random.Random(15).sample(SHORT, 12), ids=lambda setting: setting.field)
def test_whole_commands_refuse_them(setting, tmp_path, capsys):
    *sections, leaf = setting.field.split(".")
    content = {leaf: setting.value}
    for name in reversed(sections):
        content = {name: content}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["run", "--out", str(tmp_path / "run"), "--config", str(path)]) == 2
    assert "ConfigError: " in capsys.readouterr().err and not (tmp_path / "run").exists()
