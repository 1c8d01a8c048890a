"""Measuring: the reference VLM, accuracy and efficiency, always through the public API."""
