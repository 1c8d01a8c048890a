"""Fine-tune a model on compressed pictures with transformers' Trainer.

    python trainer.py --model Qwen/Qwen2.5-VL-3B-Instruct --retention 0.25 --output tuned

A model that is to run on few image tokens learns to do so when it is tuned on few. The data are drawn
scenes with questions and answers; put your own into `Questions`. The small model knows such scenes
already, so it learns little here. What is saved is a plain model without compression.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import vtc
from vtc.eval.reference import checkpoint_path, scenes


class Questions(Dataset):
    """Pictures with a question and its answer."""

    def __init__(self, split: str, count: int, seed: int) -> None:
        found = scenes(split, count, seed=seed)
        self.rows = [(scene.image, asked) for scene in found for asked in scene.questions[:4]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, question = self.rows[index]
        return {"image": image, "question": question.text, "answer": question.answer}


class Collator:
    """Conversations as a batch; the loss counts the words of the answers alone."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        processor.tokenizer.padding_side = "right"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        asked, whole = [], []
        for row in rows:
            words = {"type": "text", "text": row["question"]}
            turn = {"role": "user", "content": [{"type": "image"}, words]}
            reply = {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
            template = self.processor.apply_chat_template
            asked.append(template([turn], add_generation_prompt=True))
            whole.append(template([turn, reply]))
        images = [[row["image"]] for row in rows]
        kind = {"padding": True, "return_tensors": "pt"}
        batch = self.processor(images=images, text=whole, **kind)
        prompts = self.processor(images=images, text=asked, **kind)["attention_mask"].sum(1)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, length in zip(labels, prompts.tolist(), strict=True):
            row[:length] = -100
        return {**batch, "labels": labels}


def main(arguments: list[str] | None = None) -> Trainer:
    parser = argparse.ArgumentParser(description="Fine-tune on compressed pictures.")
    parser.add_argument("--model", default=str(checkpoint_path()))
    parser.add_argument("--method", default="uniform")
    parser.add_argument("--retention", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--output", default="tuned")
    settings = parser.parse_args(arguments)

    model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(settings.model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=settings.output,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            logging_steps=max(1, settings.steps // 10),
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,  # the collator reads them
            prediction_loss_only=True,  # logits count the short prompt, labels the long one
        ),
        data_collator=Collator(processor),
        train_dataset=Questions("train", settings.scenes, seed=1),
        eval_dataset=Questions("val", max(4, settings.scenes // 8), seed=2),
    )

    handle = vtc.apply(model, settings.method, retention=settings.retention)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"loss on unseen questions at {settings.retention:.0%} of the tokens: ", end="")
    print(f"{before:.3f} before, {after:.3f} after")
    handle.remove()
    trainer.save_model(settings.output)
    processor.save_pretrained(settings.output)
    return trainer


if __name__ == "__main__":
    main()
