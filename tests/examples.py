"""How many examples hypothesis draws: a third in the ordinary suite, as every run draws others; all with `-m slow`."""

from hypothesis import settings

ALL = False  # set before the tests are collected


def examples(count: int, **options) -> settings:
    """Hypothesis's settings for a property that `count` examples test thoroughly; `options` are further settings."""
    return settings(max_examples=count if ALL else max(count // 3, min(count, 6)), deadline=None, **options)
