"""Training a scorer for `learned` on a model's own answers, without labels.

`pictures` says what is asked about which image, `teach` writes down where the answers of the
uncompressed model look, `fit` trains on that, `held_out` measures what the answers lose under selection,
`train` does one after the other.
"""
