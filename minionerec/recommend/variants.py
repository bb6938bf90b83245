"""The names of what a run's trained models give: alone, mixed, assisted, or by titles; and what each is made of."""

STAGES = ("sft", "rl")  # the training stages, in their order
MIXED = {f"{stage}-mixture": stage for stage in STAGES}  # a model with its mixture, and its stage
ASSISTED = {**{f"{stage}-d3": stage for stage in STAGES}, "sft-titles-d3": "sft"}  # with its assistant (`eval.assistant`)
GROUNDED = {"sft-titles": "sft"}  # a model whose written titles are grounded (`eval.grounding`)
TITLED = ("sft-titles-trie", "sft-titles-d3")  # an SFT model that is searched over the catalog's titles (`eval.title_trie`)
# All of these, in the order of pages.
VARIANTS = {
    **MIXED,
    **{name: stage for name, stage in ASSISTED.items() if name not in TITLED},
    **GROUNDED,
    **dict.fromkeys(TITLED, "sft"),
}
# The artefact with the weights that the parts have, in a mixture or with an assistant.
WEIGHTS = {
    **{name: f"mixture/{stage}" for name, stage in MIXED.items()},
    **{name: f"d3/{name.removesuffix('-d3')}" for name in ASSISTED},
}


def stage_of(name: str) -> str | None:
    """The training stage whose model makes a recommender's lists; None if none does.

    >>> stage_of("rl"), stage_of("sft-titles-trie"), stage_of("sasrec")
    ('rl', 'sft', None)
    """
    return VARIANTS.get(name, name if name in STAGES else None)


def trained_parts(name: str) -> tuple[str, ...]:
    """The artefacts of the trainings behind a recommender: its model's stages, then its weights.

    >>> trained_parts("rl-d3"), trained_parts("sft-titles"), trained_parts("popularity")
    (('sft', 'rl', 'd3/rl'), ('sft',), ())
    """
    if (stage := stage_of(name)) is None:
        return ()
    return STAGES[: STAGES.index(stage) + 1] + ((WEIGHTS[name],) if name in WEIGHTS else ())
