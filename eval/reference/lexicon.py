"""The closed world of the reference VLM: colours, shapes, words, and its whole vocabulary.

The vocabulary is small on purpose: every embedding is trained often, and a few million parameters
are enough to read, look up, count and locate.
"""

from __future__ import annotations

# RGB values chosen to stay apart after the thumbnail has blurred them.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "green": (36, 150, 52),
    "blue": (44, 78, 214),
    "yellow": (240, 216, 40),
    "purple": (146, 46, 180),
    "cyan": (40, 196, 214),
    "orange": (250, 138, 24),
    "brown": (112, 66, 26),
}
COLOR_NAMES = list(COLORS)

SHAPES = ["circle", "square", "triangle", "cross", "ring", "bar"]
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "ring": "rings",
    "bar": "bars",
}

# Words that can be printed in an image. None of them is used as a question word.
WORDS = (
    "tax fee sum net due vat tip fax bus car cat dog cow hen pig fox bee ant owl rat "
    "cup jar pan mug hat tie sky sea ice sun map key pen ink oil gas egg nut pie jam"
).split()

DIGITS = list("0123456789")
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
CHARACTERS = DIGITS + LETTERS

QUADRANTS = ["top left", "top right", "bottom left", "bottom right"]

QUESTION_WORDS = (
    "what is the in of a an are there how many where which at color shape number word value "
    "box record shape shapes object objects yes no top bottom left right user assistant system "
    "nothing with and on text page scene"
).split()
PUNCTUATION = ["?", ":", ".", ",", "!"]

# Words without a meaning here: they vary the text before the image, so that no answer can depend
# on where the image run starts.
FILLER = (
    "please look this picture carefully answer following question about image you see below now "
    "one short reply give me tell here for it that to from then"
).split()


def vocabulary() -> list[str]:
    """Every surface word in a fixed order, without duplicates."""
    groups = [
        COLOR_NAMES,
        SHAPES,
        list(PLURALS.values()),
        WORDS,
        QUESTION_WORDS,
        PUNCTUATION,
        FILLER,
    ]
    return list(dict.fromkeys(word for group in groups for word in group))
