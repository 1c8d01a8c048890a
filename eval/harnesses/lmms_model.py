"""The model that lmms-eval runs: `python -m lmms_eval --model vtc --model_args ...`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image
from tqdm import tqdm

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.eval.harnesses.model import Compressed, Generation, Question
from vtc.pictures import load_image


class Model(lmms):
    """A Hugging Face model with compression, in lmms-eval's "simple" protocol.

    Of the two protocols only this one has likelihood tasks. Each rank of `accelerate launch` has the
    whole model and answers its share of the questions.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "none",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        **compression: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: hub id, folder or "reference".
            method: name of a method, "none" for the uncompressed model.
            device: torch device; with several processes each gets its own.
            dtype: as `vtc run --dtype`.
            batch_size: questions together, a number.
            max_batch_size: part of lmms-eval's calling convention, not used.
            compression: `retention`, `tokens`, `positions`, and the method's own options.

        Raises:
            VTCError: no such model, method or option, or a batch size that is no number.
        """
        super().__init__()
        try:
            self.batch_size = int(batch_size or 1)
        except ValueError:
            self.batch_size = 0
        if self.batch_size < 1:
            raise VTCError(f"batch_size: got {batch_size!r}, allowed are whole numbers >= 1")
        self.accelerator = Accelerator(cpu=device == "cpu")
        self._rank, self._world_size = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        if self._world_size > 1:
            device = str(self.accelerator.device)
        # the environment is left out: it would not show in lmms-eval's record of the run
        config = CompressionConfig.from_sources(env={}, method=method, **compression)
        self.compressed = Compressed.load(pretrained, config, device, dtype)
        self.device = self.compressed.loaded.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests; those with equal settings go in batches."""
        found: dict[int, str] = {}
        with self._progress(len(requests)) as bar:
            for numbers in self._batches(requests):
                arguments = [requests[number].args for number in numbers]
                questions = [
                    self._question(text, visuals(self.task_dict[task][split][doc]), task)
                    for text, _, visuals, doc, task, split in arguments
                ]
                said = self.compressed.answer(questions, self._generation(arguments[0][1]))
                for number, (text, given, *_), answer in zip(numbers, arguments, said, strict=True):
                    self.cache_hook.add_partial("generate_until", (text, given), answer)
                    found[number] = answer
                bar.update(len(numbers))
        self._tell()
        return [found[number] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """For each request the mean negative log-likelihood of its continuation, and whether it is
        the greedy one. lmms-eval picks the smallest: it means a loss here, as in its own models."""
        found = []
        with self._progress(len(requests)) as bar:
            for request in requests:
                text, target, visuals, doc, task, split = self._likelihood(request)
                row = self.task_dict[task][split][doc]
                continuation = target if isinstance(target, str) else target(row)
                question = self._question(text, visuals(row), task)
                found.append(self.compressed.loss(question, continuation))
                bar.update()
        self._tell()
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request; its task says what the next round asks."""
        found = []
        with self._progress(len(requests)) as bar:
            for request in requests:
                text, given, visuals, following, doc, task, split = request.args
                row, generation = self.task_dict[task][split][doc], self._generation(given)
                images, state = visuals(row), None
                said: list[str] = []
                while True:
                    question = self._question(text, images, task)
                    said = [*said, *self.compressed.answer([question], generation)]
                    images, text, over, said, state = following(
                        row, previous_output=said, round_idx=len(said), previous_round_info=state
                    )
                    if over:
                        break
                found.append(list(said))
                bar.update()
        self._tell()
        return found

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Numbers of requests with the same generation settings."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True, default=str)].append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _question(self, text: str, visuals: Any, task: str) -> Question:
        images = list(visuals or ())
        for image in images:
            if not isinstance(image, Image.Image):
                raise VTCError(
                    f"task: {task!r} has a {type(image).__name__} among its visuals; this model "
                    "takes images (no video, no sound)"
                )
        return Question(text, [load_image(image) for image in images])

    def _generation(self, given: dict[str, Any]) -> Generation:
        generation = Generation.read(given)
        if generation.ignored:
            logger.warning(f"vtc: generation settings not used: {', '.join(generation.ignored)}")
        return generation

    def _likelihood(self, request: Instance) -> tuple[Any, ...]:
        if len(request.args) != 6:  # acc_mutual_info asks for choices without their question
            raise VTCError("metric: acc_mutual_info needs likelihoods without a question")
        return request.args

    def _progress(self, count: int) -> tqdm:
        return tqdm(total=count, desc="vtc", disable=self.rank != 0)

    def _tell(self) -> None:
        seen = self.compressed
        if seen.tokens_full:
            share = seen.tokens / seen.tokens_full
            logger.info(
                f"vtc: {seen.tokens} of {seen.tokens_full} visual tokens kept ({share:.1%})"
            )
