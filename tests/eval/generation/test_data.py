"""Images of the runner: folders with bad files, rendered scenes, splits, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vtc import VTCError

pytest.importorskip("omegaconf")
pytest.importorskip("accelerate")

from vtc.eval.generation import render  # noqa: E402
from vtc.eval.generation.config import DataSettings  # noqa: E402
from vtc.eval.generation.data import HubImages, load_data, picture_to_tensor, take  # noqa: E402
from vtc.eval.generation.loop import StepBatches  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of two classes, and a text file that calls itself a picture."""
    for index in range(6):
        path = tmp_path / ("dark" if index % 2 else "light") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 12 + index), (0 if index % 2 else 255,) * 3).save(path)
    (tmp_path / "dark" / "broken.jpg").write_text("this is no picture")
    return tmp_path


def test_a_corrupt_file_is_named(folder: Path) -> None:
    data = load_data(DataSettings(f"folder:{folder}", size=8, held_out=0))
    with pytest.raises(VTCError, match=r"broken\.jpg.*data\.corrupt=skip"):
        take(data.train)


def test_a_corrupt_file_is_skipped_and_named(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 of 7 files.*broken\.jpg"):
        data = load_data(DataSettings(f"folder:{folder}", size=8, held_out=0.34, corrupt="skip"))
    assert (len(data.train), len(data.valid)) == (4, 2)  # type: ignore[arg-type]
    assert data.classes == ("dark", "light")
    batch = take(data.train)
    assert batch["image"].shape == (4, 3, 8, 8)
    assert torch.equal(batch["image"][:, 0, 0, 0] > 0, batch["label"] == 1)


def test_folders_without_images_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(VTCError, match="no readable image"):
        load_data(DataSettings(f"folder:{tmp_path}", size=8))
    with pytest.raises(VTCError, match="is no folder"):
        load_data(DataSettings(f"folder:{tmp_path / 'none'}", size=8))
    with pytest.raises(VTCError, match="did you mean 'digits'"):
        load_data(DataSettings("digit"))
    with pytest.raises(VTCError, match=r"data\.size: got 10"):
        load_data(DataSettings("digits", size=10))


def test_hub_tables_find_their_columns() -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}
    rows = {"picture": [Image.new("L", (9, 9), 255)] * 3, "kind": [0, 1, 1]}
    images = HubImages(datasets.Dataset.from_dict(rows, datasets.Features(kinds)), 4)
    assert images.classes == ("a", "b")
    batch = take(images)
    assert batch["label"].tolist() == [0, 1, 1]
    assert torch.equal(batch["image"], torch.ones(3, 3, 4, 4))
    with pytest.raises(VTCError, match="no image column"):
        HubImages(datasets.Dataset.from_dict({"text": ["x"]}), 4)


def test_a_scene_is_the_same_at_every_resolution() -> None:
    scenes = render.draw_scenes(30, seed=1)
    small, large = render.draw_shapes(scenes, 16), render.draw_shapes(scenes, 32)
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert (small - pooled).abs().mean() < 0.02
    assert large.min() >= -1 and large.max() <= 1


def test_captions_say_what_is_drawn() -> None:
    scenes = render.draw_scenes(200, seed=2)
    images, words = render.draw_shapes(scenes, 32), render.captions(scenes)
    names = [[render.WORDS[word] for word in row] for row in words.tolist()]
    for image, (size, colour, shape, place) in zip(images, names, strict=True):
        paint = torch.tensor(render.COLOURS[colour]) * 2 - 1
        covered = (image - paint[:, None, None]).abs().sum(0) < 0.2
        assert covered.any() and shape in render.SHAPES
        rows, cols = covered.nonzero(as_tuple=True)
        if shape in ("circle", "square", "ring", "diamond"):
            middle = (float(rows.float().mean()) / 31, float(cols.float().mean()) / 31)
            assert ("lower" in place) == (middle[0] > 0.5) or abs(middle[0] - 0.5) < 0.05
            assert ("right" in place) == (middle[1] > 0.5) or abs(middle[1] - 0.5) < 0.05
        spread = int(rows.max() - rows.min())
        assert (size == "large") == (spread > 16) or shape in ("triangle", "square", "cross")


def test_every_epoch_shows_every_image_once_and_ranks_share() -> None:
    batches = list(StepBatches(10, 4, (0, 5), seed=3))
    flat = [index for batch in batches for index in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert batches[2:] == list(StepBatches(10, 4, (2, 5), seed=3))  # starts anywhere
    halves = [list(StepBatches(10, 4, (0, 5), 3, rank, 2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(b) for b in batches]
    with pytest.raises(VTCError, match="does not divide by 3 processes"):
        StepBatches(10, 4, (0, 5), 3, 0, 3)


def test_pictures_of_all_kinds(tmp_path: Path) -> None:
    def read(picture: Image.Image, **options: object) -> torch.Tensor:
        picture.save(tmp_path / "picture.png", **options)
        with Image.open(tmp_path / "picture.png") as opened:
            return picture_to_tensor(opened, 8)

    grey = Image.fromarray(np.full((8, 8), 30_000, np.uint16))
    assert read(grey) == pytest.approx(2 * 30_000 / 65_535 - 1, abs=5e-3)
    for mode, value in (("I", 102), ("F", 102.0), ("F", 0.4)):  # 8 bits in wide numbers
        assert picture_to_tensor(Image.new(mode, (8, 8), value), 8) == pytest.approx(-0.2, abs=5e-3)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (read(clear) == 1).all()  # white, not red
    half = read(Image.new("RGBA", (8, 8), (255, 0, 0, 128)))
    assert half[0].mean() == 1 and half[1].mean() == pytest.approx(0, abs=0.01)
    marked = Image.new("L", (8, 8))
    marked.paste(255, (0, 0, 8, 4))  # the upper half is white
    note = Image.Exif()
    note[0x0112] = 3  # turned by 180 degrees
    turned = read(marked, exif=note)
    assert (turned[:, :4] == -1).all() and (turned[:, 4:] == 1).all()


def test_a_count_draws_from_all_classes(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("L", (8, 8), 20 * index).save(tmp_path / name / f"{index}.png")
    data = load_data(DataSettings(name=f"folder:{tmp_path}", size=8, count=12, held_out=0.0))
    labels = take(data.train)["label"]
    assert len(labels) == 12 and labels.unique().tolist() == [0, 1, 2]
    assert len(load_data(DataSettings(count=50, held_out=0.0)).train) == 50  # type: ignore[arg-type]
