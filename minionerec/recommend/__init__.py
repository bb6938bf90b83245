"""Asking a trained model: histories in, ranked lists of the catalog out."""
