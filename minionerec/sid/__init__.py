"""Semantic IDs: text encoder, quantizers, collision handling, the index, its extension by new items and its diagnosis."""

from minionerec.sid.index import SidIndex, parse_token, token_string

__all__ = ["SidIndex", "parse_token", "token_string"]
