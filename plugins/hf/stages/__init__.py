"""Where tokens are cut: one file or folder a place; importing this package registers them."""

from vtc.plugins.hf.stages import cross_attention, pixels  # noqa: F401
from vtc.plugins.hf.stages.boundary import stage  # noqa: F401
from vtc.plugins.hf.stages.layers import stage as inside  # noqa: F401
