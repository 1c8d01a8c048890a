"""What a torchvision for CUDA lacks beside a torch for CPUs: declarations of two of its operators.

On the path of every process of the tests of the vLLM plug-in. PyTorch's own index has builds that go
together and need none of this; PyPI has not. Beside it, for the test with Ray, a name that vLLM lacks.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

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


class NameDevice(MetaPathFinder):
    """Gives vLLM's platform for CPUs a device that Ray counts; by itself it names none, and vLLM says
    that it does not support Ray. Ray has as many of them as it is told."""

    def __init__(self, device):
        self.device = device

    def find_spec(self, name, path=None, target=None):
        if name != "vllm.platforms.cpu":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.CpuPlatform.ray_device_key = self.device

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Declare())
if "TEST_RAY_DEVICE" in os.environ:
    sys.meta_path.insert(0, NameDevice(os.environ["TEST_RAY_DEVICE"]))
