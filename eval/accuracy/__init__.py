"""Answers of a model to the questions of suites: asking them, a run on disk, its figures."""
