"""The old name of `vtc.plugins.model.question`, kept for code that imports it from here."""

from vtc.plugins.model.question import first_line, last_question

__all__ = ["first_line", "last_question"]
