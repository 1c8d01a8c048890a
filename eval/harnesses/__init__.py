"""Compressed models inside other people's evaluation harnesses."""
