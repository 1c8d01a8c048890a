"""What a torchvision for CUDA lacks beside a torch for CPUs: declarations of two of its operators.

On the path of every process of the tests of the vLLM plug-in. PyTorch's own index has builds that go
together and need none of this; PyPI has not.
"""

import sys
from importlib.abc import MetaPathFinder

NAMES = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class Declare(MetaPathFinder):
    """Declares the operators in front of the first import of torchvision."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare()
        return None


def declare():
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, signature in NAMES.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + signature)
    sys.modules[__name__].library = library  # as long as the process lives


sys.meta_path.insert(0, Declare())
