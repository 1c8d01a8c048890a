"""Sub-commands of `python -m vtc.eval`, one a file."""
