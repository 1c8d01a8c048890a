"""What a user asks about: image files, or a drawn scene of the reference model with its question."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtc.errors import VTCError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vtc.config import CompressionConfig

#: the scenes of `--scene`: of the test set, which the reference model never saw
SPLIT, SEED = "test", 20
#: what is said of an answer of the reference model to an image of one's own
DRAWN = (
    "the reference model was trained on drawn scenes alone, and what it says of any other picture means "
    "nothing; --scene 4 in place of --image asks it about one that it can read, --model takes another "
    "model"
)


@dataclass(frozen=True)
class Subject:
    """A picture to ask about, or why there is none.

    Attributes:
        name: the file, or the number of the scene.
        picture: RGB, None where it cannot be read.
        error: the reason.
        prompt: the question.
        right: the right answer, where one is known.
    """

    name: str
    picture: Image | None
    error: str | None
    prompt: str
    right: str | None = None

    def image(self) -> Image:
        """The picture.

        Raises:
            VTCError: it cannot be read.
        """
        if self.picture is None:
            raise VTCError(self.error or "image: none")
        return self.picture


def add(parser: argparse.ArgumentParser, several: bool) -> None:
    """`--image` or `--scene`, one of them, and how a prompt is to be read."""
    where = parser.add_mutually_exclusive_group(required=True)
    if several:
        where.add_argument(
            "--image", nargs="+", action="extend", metavar="FILE", help="image files"
        )
    else:
        where.add_argument("--image", nargs=1, metavar="FILE", help="image file")
    where.add_argument(
        "--scene",
        type=_number,
        metavar="N",
        help="drawn scene number N, with its own question; the kind of picture that the reference "
        "model was trained on",
    )
    parser.add_argument("--raw", action="store_true", help="the prompt is finished: no template")


def subjects(args: argparse.Namespace, prompt: str | None) -> list[Subject]:
    """What the arguments of `add` name.

    Args:
        prompt: the question; None is that of the scene.

    Raises:
        VTCError: not one of the files can be read.
    """
    if args.scene is not None:
        return [_scene(args.scene, prompt)]
    from vtc.rgb import load_image

    found = []
    for path in args.image:
        try:
            found.append(Subject(path, load_image(path), None, prompt or ""))
        except VTCError as error:
            found.append(Subject(path, None, str(error), prompt or ""))
    if all(subject.picture is None for subject in found):
        more = f" (nor {len(found) - 1} other files)" if len(found) > 1 else ""
        raise VTCError(f"{found[0].error}{more}")
    return found


def about(args: argparse.Namespace) -> list[str]:
    """What should be known of the pictures."""
    return [DRAWN] if args.model == "reference" and args.scene is None else []


def budgeted(config: CompressionConfig) -> list[str]:
    """What should be known of a budget that no method spends."""
    if config.method != "none" or not config.budget():
        return []
    return ["method none drops nothing, whatever the budget; --method divprune would, for instance"]


def _scene(number: int, prompt: str | None) -> Subject:
    from vtc.eval.reference.scene import make_scene

    scene = make_scene(SPLIT, SEED, number)
    answers = {question.text: question.answer for question in scene.questions}
    if prompt is None:
        prompt = next(iter(answers), "what is in the image ?")
    return Subject(f"scene {number}", scene.image, None, prompt, answers.get(prompt))


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed are whole numbers >= 0")
    return int(text)
