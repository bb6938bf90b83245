"""Content recommenders of three parts: item encoder, user encoder, interaction (Legommenders)."""
