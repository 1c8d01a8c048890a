"""The prompts of the suites against the tasks of lmms-eval. Skipped where it is not installed (CI)."""

from pathlib import Path

import pytest

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

from tests.eval.suites.hub import HUB  # noqa: E402
from vtc.eval.suites import create_suite  # noqa: E402

TASKS = {
    "vqav2": "vqav2/vqav2_val",
    "gqa": "gqa/gqa",
    "vizwiz": "vizwiz_vqa/vizwiz_vqa_val",
    "scienceqa": "scienceqa/scienceqa_img",
    "textvqa": "textvqa/textvqa_val",
    "pope": "pope/pope",
    "mme": "mme/mme",
    "mmbench": "mmbench/mmbench_en_dev",
    "docvqa": "docvqa/docvqa_val",
    "chartqa": "chartqa/chartqa",
    "infovqa": "infovqa/infovqa_val",
    "ocrbench": "ocrbench/ocrbench",
    "ai2d": "ai2d/ai2d",
    "mmstar": "mmstar/mmstar",
}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_prompts_splits_and_configurations(hub, name):
    from lmms_eval.utils import load_yaml_config

    task = load_yaml_config(
        str(Path(lmms_eval.__file__).parent / "tasks" / f"{TASKS[name]}.yaml"), mode="full"
    )
    suite = create_suite(name, data=str(hub[name]))
    # the datasets have moved from lmms-lab to another organisation in the newest lmms-eval
    assert task["dataset_path"].split("/")[1] == suite.dataset.split("/")[1]
    assert task.get("dataset_name") == suite.config
    assert task["test_split"] == suite.default_split
    words = task["lmms_eval_specific_kwargs"]["default"]
    for row, item in zip(HUB[name][0].rows, suite.items(), strict=True):
        assert item.prompt == task["doc_to_text"](row, words)
