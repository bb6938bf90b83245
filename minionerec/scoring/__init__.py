"""Scores of labelled pairs: how surely a user likes a candidate."""
