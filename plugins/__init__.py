"""Plug-ins that put a compression method into a live model."""
