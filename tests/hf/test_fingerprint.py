"""The hash of an image's pixels."""

from __future__ import annotations

import torch

from tests.kernels.pretend import OnDevice, PretendDevice
from vtc.plugins.model.fingerprint import content_seeds


def pictures() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tiles, 3, 8, 8, generator=generator) for tiles in (1, 3, 2, 3)]


def test_a_seed_belongs_to_the_pixels_alone() -> None:
    images = pictures()
    together = content_seeds(images)
    assert len(set(together)) == 4 and all(0 <= seed < 2**62 for seed in together)
    assert [content_seeds([each])[0] for each in images] == together
    assert content_seeds(images[::-1]) == together[::-1]


def test_every_pixel_and_its_place_count() -> None:
    (image,) = pictures()[1:2]
    changed = image.clone()
    changed[2, 1, 3, 4] += 1e-3
    tiles, columns = image.flip(0), image.roll(1, -1)
    assert len(set(content_seeds([image, changed, tiles, columns]))) == 4


def test_half_precision_is_hashed_as_its_values() -> None:
    half = [each.half() for each in pictures()]
    assert content_seeds(half) == content_seeds([each.float() for each in half])


def test_one_read_for_all_images() -> None:
    images = pictures()
    there = [OnDevice(each) for each in images]
    with PretendDevice() as device:
        assert content_seeds(there) == content_seeds(images)
    assert device.reads == 1 and not device.stops
