"""Small copies of the hub datasets: the same files, columns and types, two or more rows each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

TEXT, NUMBER = "string", "int64"
ANSWERS = ["red"] * 3 + ["Dark red."] * 7


def picture(shade: int) -> Pictures.Image:
    return Pictures.new("RGB", (6, 4), (shade, 0, 0))


@dataclass(frozen=True)
class Table:
    """A Parquet file of a dataset: its path there, the types of its columns, its rows."""

    path: str
    types: dict[str, Any]
    rows: list[dict[str, Any]]

    def write(self, folder: Path) -> Path:
        from datasets import Dataset, Features, Image, Value

        def feature(kind: Any) -> Any:
            if isinstance(kind, list):
                return [feature(kind[0])]
            if isinstance(kind, dict):
                return {name: feature(inner) for name, inner in kind.items()}
            return Image() if kind == "image" else Value(kind)

        features = Features({name: feature(kind) for name, kind in self.types.items()})
        rows = [{name: row.get(name) for name in self.types} for row in self.rows]
        file = folder / self.path
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(str(file))
        return file


def _people(answers: list[str]) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
        for i, answer in enumerate(answers)
    ]


def _turned(index: int, turn: int, options: list[str], right: str, **more: Any) -> dict[str, Any]:
    turned = options[turn:] + options[:turn]
    letters = dict(zip("ABCD", turned, strict=False))
    answer = next(letter for letter, option in letters.items() if option == right)
    return {"index": index + turn * 1_000_000, "answer": answer, "image": picture(index)} | {
        **{letter: letters.get(letter, "nan") for letter in "ABCD"},
        **more,
    }


HUB: dict[str, list[Table]] = {
    "vqav2": [
        Table(
            "data/validation-00000-of-00001.parquet",
            {
                "question_type": TEXT,
                "multiple_choice_answer": TEXT,
                "answers": [{"answer": TEXT, "answer_confidence": TEXT, "answer_id": NUMBER}],
                "image_id": NUMBER,
                "answer_type": TEXT,
                "question_id": NUMBER,
                "question": TEXT,
                "image": "image",
            },
            [
                {
                    "question_type": "what color is the",
                    "multiple_choice_answer": "dark red",
                    "answers": _people(ANSWERS),
                    "image_id": 42,
                    "answer_type": "other",
                    "question_id": 42000 + i,
                    "question": "What color is the car?",
                    "image": picture(i),
                }
                for i in range(2)
            ],
        )
    ],
    "gqa": [
        Table(
            "testdev_balanced_instructions/testdev-00000-of-00001.parquet",
            {
                "id": TEXT,
                "imageId": TEXT,
                "question": TEXT,
                "answer": TEXT,
                "fullAnswer": TEXT,
                "isBalanced": "bool",
                "groups": {"global": TEXT, "local": TEXT},
                "entailed": TEXT,
                "equivalent": TEXT,
                "types": {"structural": TEXT, "semantic": TEXT, "detailed": TEXT},
                "annotations": {
                    "answer": [{"objectId": TEXT, "value": TEXT}],
                    "question": [{"objectId": TEXT, "value": TEXT}],
                    "fullAnswer": [{"objectId": TEXT, "value": TEXT}],
                },
                "semantic": [{"operation": TEXT, "argument": TEXT, "dependencies": ["int32"]}],
                "semanticStr": TEXT,
            },
            [
                {
                    "id": f"2{i}",
                    "imageId": image,
                    "question": "What is on the table?",
                    "answer": "bottle",
                    "fullAnswer": "The bottle is on the table.",
                    "isBalanced": True,
                    "types": {"structural": "query", "semantic": "rel", "detailed": "relS"},
                }
                for i, image in enumerate(["n1", "n1", "n2"])
            ],
        ),
        Table(
            "testdev_balanced_images/testdev-00000-of-00001.parquet",
            {"id": TEXT, "image": "image"},
            [{"id": "n1", "image": picture(1)}],
        ),
    ],
    "vizwiz": [
        Table(
            "data/val-00000-of-00001.parquet",
            {
                "question_id": TEXT,
                "image": "image",
                "question": TEXT,
                "answers": [TEXT],
                "category": TEXT,
            },
            [
                {
                    "question_id": f"VizWiz_val_0000000{i}",
                    "image": picture(i),
                    "question": "what COLOR is it?",
                    "answers": ANSWERS,
                    "category": "other",
                }
                for i in range(2)
            ],
        )
    ],
    "scienceqa": [
        Table(
            "ScienceQA-IMG/test-00000-of-00001.parquet",
            {
                "image": "image",
                "question": TEXT,
                "choices": [TEXT],
                "answer": "int8",
                "hint": TEXT,
                "task": TEXT,
                "grade": TEXT,
                "subject": TEXT,
                "topic": TEXT,
                "category": TEXT,
                "skill": TEXT,
                "lecture": TEXT,
                "solution": TEXT,
            },
            [
                {
                    "image": picture(i),
                    "question": "Which is a liquid?",
                    "choices": ["rock", "milk", "air"],
                    "answer": 1,
                    "hint": hint,
                    "subject": "natural science",
                }
                for i, hint in enumerate(["", "Look at the cup."])
            ],
        )
    ],
    "textvqa": [
        Table(
            "data/validation-00000-of-00001.parquet",
            {
                "image_id": TEXT,
                "question_id": "int32",
                "question": TEXT,
                "question_tokens": [TEXT],
                "image": "image",
                "image_width": "int32",
                "image_height": "int32",
                "flickr_original_url": TEXT,
                "flickr_300k_url": TEXT,
                "answers": [TEXT],
                "image_classes": [TEXT],
                "set_name": TEXT,
                "ocr_tokens": [TEXT],
            },
            [
                {
                    "image_id": "0e3d",
                    "question_id": 34602 + i,
                    "question": "what COLOR is it?",
                    "image": picture(i),
                    "answers": ANSWERS,
                    "set_name": "val",
                    "ocr_tokens": ["RED"],
                }
                for i in range(2)
            ],
        )
    ],
    "pope": [
        Table(
            "data/test-00000-of-00001.parquet",
            {
                "id": TEXT,
                "question_id": TEXT,
                "question": TEXT,
                "answer": TEXT,
                "image_source": TEXT,
                "image": "image",
                "category": TEXT,
            },
            [
                {
                    "id": str(i),
                    "question_id": "1",
                    "question": "Is there a snowboard in the image?",
                    "answer": answer,
                    "image_source": "COCO_val2014_000000310196",
                    "image": picture(1),
                    "category": category,
                }
                for i, (category, answer) in enumerate(
                    [("adversarial", "yes"), ("popular", "no"), ("popular", "no")]
                )
            ],
        )
    ],
    "mme": [
        Table(
            "data/test-00000-of-00001.parquet",
            {
                "question_id": TEXT,
                "image": "image",
                "question": TEXT,
                "answer": TEXT,
                "category": TEXT,
            },
            [
                {
                    "question_id": f"{category}/000{i}.png",
                    "image": picture(i),
                    "question": f"Is it {what}? Please answer yes or no.",
                    "answer": answer,
                    "category": category,
                }
                for category in ("OCR", "code_reasoning")
                for i in range(2)
                for what, answer in (("a sign", "Yes"), ("a dog", "No"))
            ],
        )
    ],
    "mmbench": [
        Table(
            "en/dev-00000-of-00001.parquet",
            {
                "index": NUMBER,
                "question": TEXT,
                "hint": TEXT,
                "answer": TEXT,
                "A": TEXT,
                "B": TEXT,
                "C": TEXT,
                "D": TEXT,
                "category": TEXT,
                "image": "image",
                "source": TEXT,
                "L2-category": TEXT,
                "comment": TEXT,
                "split": TEXT,
            },
            [
                _turned(
                    index,
                    turn,
                    options,
                    options[0],
                    question="Which one?",
                    hint=hint,
                    category="object_localization",
                    source="x",
                    split="dev",
                    **{"L2-category": "finegrained_perception", "comment": "nan"},
                )
                for index, options, hint in [
                    (241, ["left", "right", "up", "down"], "nan"),
                    (252, ["cold", "hot"], "Two cups."),
                ]
                for turn in range(len(options))
            ],
        )
    ],
    "docvqa": [
        Table(
            "DocVQA/validation-00000-of-00001.parquet",
            {
                "questionId": TEXT,
                "question": TEXT,
                "question_types": [TEXT],
                "image": "image",
                "docId": NUMBER,
                "ucsf_document_id": TEXT,
                "ucsf_document_page_no": TEXT,
                "answers": [TEXT],
                "data_split": TEXT,
            },
            [
                {
                    "questionId": str(49153 + i),
                    "question": "What is the date?",
                    "question_types": ["form", "layout"],
                    "image": picture(i),
                    "docId": 14465,
                    "answers": ["12 May", "May 12"],
                    "data_split": "val",
                }
                for i in range(2)
            ],
        )
    ],
    "chartqa": [
        Table(
            "data/test-00000-of-00001.parquet",
            {"type": TEXT, "question": TEXT, "answer": TEXT, "image": "image"},
            [
                {"type": kind, "question": "How many?", "answer": "14", "image": picture(1)}
                for kind in ("human_test", "augmented_test")
            ],
        )
    ],
    "infovqa": [
        Table(
            "InfographicVQA/validation-00000-of-00001.parquet",
            {
                "questionId": TEXT,
                "question": TEXT,
                "answers": [TEXT],
                "answer_type": [TEXT],
                "image": "image",
                "image_url": TEXT,
                "operation/reasoning": [TEXT],
                "ocr": TEXT,
                "data_split": TEXT,
            },
            [
                {
                    "questionId": str(98313 + i),
                    "question": "What is the date?",
                    "answers": ["12 May", "May 12"],
                    "answer_type": ["single span"],
                    "image": picture(i),
                    "image_url": "https://example.org/a.png",
                    "data_split": "val",
                }
                for i in range(2)
            ],
        )
    ],
    "ocrbench": [
        Table(
            "data/test-00000-of-00001.parquet",
            {
                "dataset": TEXT,
                "question": TEXT,
                "question_type": TEXT,
                "answer": [TEXT],
                "image": "image",
            },
            [
                {
                    "dataset": dataset,
                    "question": "what is written in the image?",
                    "question_type": kind,
                    "answer": [answer],
                    "image": picture(1),
                }
                for dataset, kind, answer in [
                    ("IIIT5K", "Regular Text Recognition", "CENTRE"),
                    ("HME100k", "Handwritten Mathematical Expression Recognition", "x ^ { 2 }"),
                ]
            ],
        )
    ],
    "ai2d": [
        Table(
            "data/test-00000-of-00001.parquet",
            {"question": TEXT, "options": [TEXT], "answer": TEXT, "image": "image"},
            [
                {
                    "question": "Which is the root?",
                    "options": ["a", "b", "d", "c"],
                    "answer": "2",
                    "image": picture(i),
                }
                for i in range(2)
            ],
        )
    ],
    "mmstar": [
        Table(
            "mmstar.parquet",
            {
                "index": NUMBER,
                "question": TEXT,
                "image": "image",
                "answer": TEXT,
                "category": TEXT,
                "l2_category": TEXT,
                "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
            },
            [
                {
                    "index": i,
                    "question": "Which one?\nOptions: A: left, B: right, C: up, D: down",
                    "image": picture(i),
                    "answer": "B",
                    "category": "instance reasoning",
                    "l2_category": "single-instance reasoning",
                    "meta_info": {"source": "MMBench", "split": "val", "image_path": "1.jpg"},
                }
                for i in range(2)
            ],
        )
    ],
}
