"""Sub-commands of `python -m vtc.eval`, one a file, each with `add(subparsers)`.

A file here is a command; one whose name starts with an underscore is not. They import torch and
transformers late, so that `--help` is quick.
"""
