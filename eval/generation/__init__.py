"""Train, sample, measure and compare the tokenizers and generators of `vtc.discrete`.

`python -m vtc.eval generation` is the command; docs/generation.md has the results.
"""
