"""MiniOneRec: generative recommendation with semantic IDs, correct, cheap and readable."""

__version__ = "0.1.0"
