"""The VLMEvalKit launcher, with a stand-in for VLMEvalKit: its dictionary and its `run.py`."""

import base64
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest
from PIL import Image

from vtc.config import CompressionConfig
from vtc.eval import reference
from vtc.eval.harnesses import vlmevalkit
from vtc.eval.harnesses.model import Compressed, Generation, Question

# what VLMEvalKit's run.py does with a model: make it by name, then ask
RUN = """\
import json, sys
from vlmeval.config import supported_VLM

name = sys.argv[sys.argv.index("--model") + 1]
model = supported_VLM[name]()
said = model.generate(json.loads(sys.argv[sys.argv.index("--message") + 1]), "some dataset")
print(json.dumps({"name": name, "said": said, "mode": sys.argv[sys.argv.index("--mode") + 1]}))
"""


class BaseModel:
    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@pytest.fixture
def kit(monkeypatch, tmp_path):
    """VLMEvalKit as far as the launcher sees it, and the path of its `run.py`."""
    modules = {name: ModuleType(name) for name in ("vlmeval", "vlmeval.config", "vlmeval.vlm")}
    modules["vlmeval.vlm.base"] = ModuleType("vlmeval.vlm.base")
    modules["vlmeval.config"].supported_VLM = {}
    modules["vlmeval.vlm.base"].BaseModel = BaseModel
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "run.py").write_text(RUN)
    return tmp_path / "run.py"


def test_the_kit_runs_with_the_compressed_model(kit, tmp_path, capsys):
    (scene,) = reference.scenes("test", 1, 7, questions=1)
    scene.image.save(tmp_path / "a.png")
    text = scene.questions[0].text
    message = [
        {"type": "image", "value": str(tmp_path / "a.png")},
        {"type": "text", "value": text},
    ]
    vlmevalkit.main(
        ["--pretrained", "reference", "--vtc-method", "globalcom2", "--vtc-retention", "0.9"]
        + ["--device", "cpu", "--max-new-tokens", "8", "--run", str(kit), "--mode", "all"]
        + ["--message", json.dumps(message)]
    )
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["name"], told["mode"]) == ("reference-globalcom2-0.9", "all")
    assert told["said"] == scene.questions[0].answer


def test_a_message_keeps_the_places_of_its_images(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    parts = ["first", tmp_path / "a.png", "second", tmp_path / "a.png"]
    message = [
        {"type": "text" if isinstance(part, str) else "image", "value": str(part)} for part in parts
    ]
    asked = vlmevalkit.question(message)
    assert asked.text == "first\n<image>\nsecond\n<image>"
    assert [image.size for image in asked.images] == [(4, 4)] * 2
    message = [message[1], {"type": "text", "value": "What does <image> mean?"}]
    assert vlmevalkit.question(message).text == "<image>\nWhat does < image > mean?"


def test_every_setting_has_a_name_of_its_own():
    def named(path, **more):
        return vlmevalkit.name(path, CompressionConfig(method="random", retention=0.25, **more))

    every = {named(path) for path in ("reference", "/a/ckpt", "/b/ckpt", "a/ckpt")}
    assert len(every | {named("reference", positions="contiguous")}) == 5
    assert named("reference") == "reference-random-0.25"
    assert named("/a/ckpt").startswith("ckpt-") and "/" not in named("/a/ckpt")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--vtc-method", "globalcom"], "did you mean 'globalcom2'"),
        (["--vtc-method", "random", "--vtc-retention", "2"], "--vtc-retention: got 2"),
        (["--run", "nowhere.py"], "run: got 'nowhere.py', which is no file"),
    ],
)
def test_wrong_arguments_end_in_one_line(kit, arguments, reason):
    with pytest.raises(SystemExit) as ended:
        vlmevalkit.main(["--pretrained", "reference", *arguments])
    assert reason in str(ended.value)


def test_without_the_kit_the_launcher_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "vlmeval", None)
    with pytest.raises(SystemExit, match="VLMEvalKit cannot be imported"):
        vlmevalkit.main(["--pretrained", "reference", "--vtc-method", "none"])


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("vlmeval"), reason="VLMEvalKit is not installed")
def test_the_kit_itself_asks_and_scores(tmp_path):
    """A local multiple-choice table; the answers are those of the model asked directly."""
    pandas = pytest.importorskip("pandas")
    options = dict(zip("ABCD", ("red", "blue", "green", "yellow"), strict=True))
    rows, asked = [], []
    for scene in reference.scenes("test", 4, 7, questions=2):
        for question in scene.questions:
            file = io.BytesIO()
            scene.image.save(file, "PNG")
            rows.append(
                {"index": len(rows), "image": base64.b64encode(file.getvalue()).decode()}
                | {"question": question.text, **options, "answer": "A"}
            )
            listed = "".join(f"{letter}. {option}\n" for letter, option in options.items())
            asked.append(
                Question(
                    f"<image>\nQuestion: {question.text}\nOptions:\n{listed}"
                    "Please select the correct answer from the options above. \n",
                    [scene.image],
                )
            )
    with (tmp_path / "Local.tsv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    command = [sys.executable, "-m", "vtc.eval.harnesses.vlmevalkit", "--pretrained", "reference"]
    command += ["--vtc-method", "globalcom2", "--vtc-retention", "0.5", "--device", "cpu"]
    command += ["--max-new-tokens", "8", "--data", "Local", "--work-dir", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--judge", "exact_matching"],
        cwd=tmp_path,
        env={**os.environ, "LMUData": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (answers,) = (tmp_path / "out").rglob("reference-globalcom2-0.5_Local.xlsx")
    assert list((tmp_path / "out").rglob("*_acc.csv"))
    config = CompressionConfig(method="globalcom2", retention=0.5)
    direct = Compressed.load("reference", config, device="cpu")
    said = direct.answer(asked, Generation.read({"max_new_tokens": 8}))
    assert pandas.read_excel(answers, dtype=str)["prediction"].tolist() == said
