"""Tokens dropped between the layers of the language model."""
