"""Section `lego`: recipes, parts, and what cannot be combined."""

import dataclasses

import pytest

from minionerec.config import LegoConfig, LegoPlmConfig
from minionerec.config.lego import RECIPES
from minionerec.errors import ConfigError


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_chosen_by_its_name(name):
    assert LegoConfig(recipe=name).parts == RECIPES[name]


def test_a_part_that_is_named_takes_the_recipe_s_place():
    assert str(LegoConfig(recipe="dcn", item="id").parts) == "id/pooling/dcn"


def test_a_manifest_may_say_more_than_the_section_has():
    lego = LegoConfig(recipe="plm-nr", plm=LegoPlmConfig(tune_from=2), top=70)
    assert LegoConfig.of_manifest(dataclasses.asdict(lego) | {"chosen_by": "NDCG@10, history left out"}) == lego


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("cnn", "none", "dot"), "the user encoder none makes none"),
        (("id", "gru", "din"), "takes their vectors and no user vector. Set lego.user none"),
        (("id", "poly", "dcn"), "poly gives several vectors of a user, but dcn takes one. Set lego.interaction max"),
        (("id", "additive", "max"), "max takes the best of several user vectors, but additive gives one"),
        (("flatten", "gru", "dot"), "gives the user's vector itself. Set lego.user none"),
        (("flatten", "none", "din"), "needs several vectors of a user, but flatten gives one"),
        (("flatten", "none", "max"), "needs several vectors of a user, but flatten gives one"),
    ],
)
def test_cells_that_cannot_be_are_refused_with_the_reason(parts, message):
    item, user, interaction = parts
    with pytest.raises(ConfigError, match=f"lego cannot combine {item}/{user}/{interaction}: .*{message}"):
        LegoConfig(item=item, user=user, interaction=interaction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlp": [8]}, r"lego.mlp is \[8\], but none of the parts cnn/additive/dot reads it; dcn, dcnv2, .* do"),
        ({"recipe": "dcn", "experts": 2}, "lego.experts is 2, but none of the parts pooling/pooling/dcn reads it; dcnv2 do"),
        ({"recipe": "din", "fields": ["title"]}, "lego.fields is .'title'., but none of the parts id/none/din reads it"),
        ({"recipe": "dcn", "mlp": []}, "lego.mlp is an empty list"),
        ({"fields": []}, "lego.fields is an empty list"),
        ({"recipe": "nrms", "width": 60}, "width 60 does not split into the 8 heads of attention"),
    ],
)
def test_options_without_an_effect_and_impossible_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LegoConfig(**options)


def test_settings_of_a_language_model_need_one():
    with pytest.raises(ConfigError, match=r"lego\.plm is set, but the item encoder is cnn"):
        LegoConfig(plm=LegoPlmConfig(tune_from=2))
    with pytest.raises(ConfigError, match=r"lora_rank is 4, but lego\.plm\.tune_from is null"):
        LegoPlmConfig(lora_rank=4)
    with pytest.raises(ConfigError, match=r"lego\.plm\.lora_alpha is set, but lego\.plm\.lora_rank is 0"):
        LegoPlmConfig(lora_alpha=4)
