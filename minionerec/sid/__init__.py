"""Semantic IDs: text encoder, residual k-means, collision handling, the index and its diagnosis."""

from minionerec.sid.index import SidIndex, token_string

__all__ = ["SidIndex", "token_string"]
