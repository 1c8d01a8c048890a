"""The compression methods, one a file; importing this package registers them all."""
from vtc.methods import none  # noqa: F401
