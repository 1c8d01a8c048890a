"""The compression methods, one a file; importing this package registers them all."""

from vtc.methods import (  # noqa: F401
    globalcom2,
    none,
    pool,
    random,
    recoverable,
    token_correlation,
    tokenflex,
    uniform,
)
