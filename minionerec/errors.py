"""The exception family: every mistake a user can make ends in one of these, with a message that says what to do.

A message states what was found, where (file, row, field), what was expected and what to do next. The command line
prints it without a traceback and exits with status 2.
"""


class MiniOneRecError(Exception):
    """Base of all errors that MiniOneRec raises on purpose."""


class ConfigError(MiniOneRecError):
    """The configuration is wrong: an unknown field, a bad value, or values that do not go together."""


class DataError(MiniOneRecError):
    """Input data is wrong: a missing, truncated or altered download, a malformed row, an item without text."""


class CatalogError(MiniOneRecError):
    """The set of items or of semantic IDs is wrong: empty, duplicated, or of another dataset."""


class ArtifactError(MiniOneRecError):
    """A stage's artefact is missing, damaged, made from other inputs, or cannot be written."""


class LockedError(MiniOneRecError):
    """Another process is making the same artefact."""


class TrainingError(MiniOneRecError):
    """Training cannot continue: a loss, gradient or weight is not a number, the policy drifted too far, or memory ran out."""


class ConstraintError(MiniOneRecError):
    """Constrained decoding is impossible: the trie is empty, its tokens are unknown to the model, or its scores are NaN."""
