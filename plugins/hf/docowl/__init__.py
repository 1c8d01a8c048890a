"""Everything of mPLUG-DocOwl1.5; imported when such a model comes."""

from vtc.plugins.hf.docowl import adapter, stage  # noqa: F401
