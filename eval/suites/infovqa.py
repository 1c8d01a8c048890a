"""InfographicVQA (Mathew et al. 2022): questions about infographics."""

from __future__ import annotations

from vtc.eval.suites.docvqa import DocVQA


class InfoVQA(DocVQA):
    """As DocVQA; the kind is the first of a question's answer types."""

    name = "infovqa"
    config = "InfographicVQA"
    columns = ("questionId", "image_url", "question", "answer_type", "answers")
    kinds, document = "answer_type", "image_url"
