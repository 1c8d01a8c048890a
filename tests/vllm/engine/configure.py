"""Makes vLLM's configuration and no engine: `python -m tests.vllm.engine.configure CASES.json OUT.json`.

A case is arguments of `EngineArgs`; what comes out is why each was refused, None where it was not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(cases: Path, out: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    said: list[str | None] = []
    for case in json.loads(cases.read_text()):
        try:
            EngineArgs(dtype="float32", max_model_len=512, **case).create_engine_config()
        except ValueError as error:
            said.append(str(error))
        else:
            said.append(None)
    out.write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
