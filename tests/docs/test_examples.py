"""Each complete script runs on the reference model."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from tests.docs.pages import DOCS
from vtc.eval.reference import load_reference, scenes

FOLDER = DOCS / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_has_a_test() -> None:
    told = {"streaming_chat", "batch_captioning", "openai_server", "trainer"}
    assert {path.stem for path in FOLDER.glob("*.py")} == told


def test_a_chat_streams_and_remembers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "what shape is the orange object ?\nwhat shape is the orange object ?\n\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    script("streaming_chat").main(["--retention", "0.5", "--max-new-tokens", "4"])
    out, told = capsys.readouterr()
    said = [line.strip() for line in out.splitlines()]
    assert said[0].startswith("try:") and len(said) == 3
    assert said[1] == "square"
    assert told.count("224 of 448 patch tokens") == 2  # the picture stays in the second turn


def test_a_chat_that_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader must not wait for words that never come."""
    monkeypatch.setattr("sys.stdin", io.StringIO("what ?\n"))
    module = script("streaming_chat")

    def fails(*arguments: object, **settings: object) -> None:
        raise RuntimeError("broken")

    load = module.AutoModelForImageTextToText.from_pretrained

    def broken(*arguments: object, **settings: object) -> object:
        model = load(*arguments, **settings)
        model.generate = fails
        return model

    monkeypatch.setattr(module.AutoModelForImageTextToText, "from_pretrained", broken)
    with pytest.raises(RuntimeError, match="broken"):
        module.main([])


def test_a_folder_is_captioned_and_gone_on_with(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, scene in enumerate(scenes("test", 3, seed=20)):
        scene.image.save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("not read")
    output = tmp_path / "captions.jsonl"
    command = [str(photos), "--output", str(output), "--tokens", "40", "--batch-size", "3"]
    main = script("batch_captioning").main
    main([*command, "--max-new-tokens", "3"])
    rows = {row["file"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert sorted(rows) == ["0.png", "1.png", "2.png", "broken.png"]
    assert "error" in rows["broken.png"] and "caption" not in rows["broken.png"]
    assert all(rows[f"{number}.png"]["tokens"][1] == 40 for number in range(3))
    Image.new("RGB", (80, 60)).save(photos / "new.png")
    main([*command, "--max-new-tokens", "3"])
    assert [json.loads(line)["file"] for line in output.read_text().splitlines()][-1] == "new.png"
    whole = output.read_bytes()
    assert len(whole.splitlines()) == 5
    for torn in (whole[:-20], whole[:7]):  # killed while it wrote
        output.write_bytes(torn)
        main([*command, "--max-new-tokens", "3"])
        again = [json.loads(line)["file"] for line in output.read_text().splitlines()]
        assert sorted(again) == [*sorted(rows), "new.png"]


def ask(address: str, request: object, path: str = "/v1/chat/completions") -> tuple[int, dict]:
    data = request if isinstance(request, bytes) else json.dumps(request).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data)) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_requests_to_a_server_have_their_own_budgets() -> None:
    module = script("openai_server")
    scene = next(scenes("test", 1, seed=20))
    file = io.BytesIO()
    scene.image.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    words = {"type": "text", "text": scene.questions[1].text}
    content = [{"type": "image_url", "image_url": {"url": url}}, words]
    request = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    with module.Server(("127.0.0.1", 0), str(module.checkpoint_path())) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        budgets = [0.5, 0.25, 1.0]
        sent = [{**request, "vtc": {"method": "uniform", "retention": r}} for r in budgets]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda one: ask(address, one), sent))
        assert [status for status, _ in answers] == [200, 200, 200]
        dropped = [a["usage"]["prompt_tokens_details"]["image_tokens_dropped"] for _, a in answers]
        assert dropped == [224, 336, 0]
        assert answers[2][1]["choices"][0]["message"]["content"] == scene.questions[1].answer
        text = {"messages": [{"role": "user", "content": "hello ?"}], "max_tokens": 1}
        assert ask(address, text)[0] == 200
        remote = {"type": "image_url", "image_url": {"url": "https://example.org/cat.jpg"}}
        for bad, told in (
            ({**request, "vtc": {"method": "divprun"}}, "divprune"),
            ({**request, "vtc": {"text_encoder": "/etc"}}, "allowed are method"),
            ({**request, "max_tokens": 0}, "max_tokens"),
            ({"messages": [{"role": "user", "content": [remote]}]}, "data:image"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "user", "content": 3}]}, "content: a text"),
            ({**request, "max_tokens": True}, "max_tokens: got True"),
            (b"{", "Expecting"),
            ([], "JSON object"),
        ):
            status, answer = ask(address, bad)
            assert status == 400 and told in answer["error"]["message"], answer
        assert ask(address, {}, "/v1/models")[0] == 404
        server.shutdown()


def test_a_trainer_learns_its_questions_on_few_tokens_and_saves_a_plain_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight questions again and again: their loss falls. Unseen ones need longer than a test."""
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    settings = "--steps 10 --scenes 2 --batch-size 8 --retention 0.05 --learning-rate 5e-4".split()
    trainer = script("trainer").main([*settings, "--output", str(tmp_path / "tuned")])
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 10 and losses[-1] < 0.7 * losses[0], losses
    assert "loss on unseen questions at 5% of the tokens" in capsys.readouterr().out
    from transformers import AutoModelForImageTextToText, AutoProcessor

    tuned = AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned", dtype=torch.float32)
    AutoProcessor.from_pretrained(tmp_path / "tuned")
    plain = load_reference()[0].state_dict()
    assert {name.split(".")[-1] for name in tuned.state_dict()} == {
        name.split(".")[-1] for name in plain
    }
