"""Makes vLLM's configuration and no engine: `python -m tests.vllm.engine.configure CASES.json OUT.json`.

A case is arguments of `EngineArgs`, with a request behind them or none; what comes out is why each was
refused, None where it was not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(cases: Path, out: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    said: list[str | None] = []
    for case in json.loads(cases.read_text()):
        request = case.pop("request", None)
        settings = {"dtype": "float32", "max_model_len": 512, **case}
        try:
            made = EngineArgs(**settings).create_engine_config()
            if request:
                process(made.model_config, **request)
        except ValueError as error:
            said.append(str(error))
        else:
            said.append(None)
    out.write_text(json.dumps(said))


def process(model_config: Any, prompt: str, images: list[str], keywords: dict[str, Any]) -> None:
    """What the API server does with a request before an engine sees it."""
    from PIL import Image
    from vllm.multimodal import MULTIMODAL_REGISTRY

    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    items = processor.info.parse_mm_data({"image": [Image.open(file) for file in images]})
    processor(prompt, items, hf_processor_mm_kwargs=keywords)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
