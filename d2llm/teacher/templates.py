"""Prompts that put a query and a passage before the teacher with a yes/no question (paper section 3.1)."""

import string
from dataclasses import dataclass

from d2llm.errors import InputError
from d2llm.tasks import ASYM, SYM, TASKS
from d2llm.texts import check_text


@dataclass(frozen=True)
class Template:
    """A prompt with ``{query}`` and ``{passage}`` in it, ending in a question, and its two answers.

    A literal brace is written twice, as in a format string.

    Raises:
        InputError: if a placeholder is missing, repeated, unknown or has a format, the question or an answer is
            absent, or the task is unknown.
    """

    name: str
    task: str
    text: str
    yes: str
    no: str

    def __post_init__(self) -> None:
        try:
            parsed = [part for part in string.Formatter().parse(self.text) if part[1] is not None]
        except ValueError as error:
            raise InputError(f"template {self.name!r:.200}: {error}; a literal brace is written twice") from None
        fields = [field for _, field, _, _ in parsed]
        if sorted(map(str, fields)) != ["passage", "query"]:
            raise InputError(
                f"template {self.name!r:.200}: expected {{query}} and {{passage}} once each, got {fields!s:.200}"
            )
        if any(form or conversion for _, _, form, conversion in parsed):
            raise InputError(f"template {self.name!r:.200}: expected {{query}} and {{passage}} without a format")
        if not self.pieces()[-1][0].strip():
            raise InputError(f"template {self.name!r:.200}: expected a question after the last placeholder")
        for answer in (self.yes, self.no):
            check_text(answer, f"template {self.name!r:.200}: yes, no")
        if self.task not in TASKS:
            raise InputError(f"template {self.name!r:.200}: task: expected one of {TASKS}, got {self.task!r:.200}")

    def pieces(self) -> list[tuple[str, str | None]]:
        """The prompt cut at its placeholders: (literal, placeholder after it or None at the end)."""
        pieces: list[tuple[str, str | None]] = []
        literal = ""
        for text, field, _, _ in string.Formatter().parse(self.text):
            literal += text
            if field is not None:
                pieces.append((literal, field))
                literal = ""
        return [*pieces, (literal, None)]


TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "sym-en",
            SYM,
            "Sentence 1: {query}\nSentence 2: {passage}\n"
            "Does the first sentence state what the second one states? Answer yes or no.\nAnswer:",
            yes=" yes",
            no=" no",
        ),
        Template(
            "asym-en",
            ASYM,
            "Query: {query}\nPassage:\n{passage}\nDoes the passage answer the query? Answer yes or no.\nAnswer:",
            yes=" yes",
            no=" no",
        ),
        Template(
            "sym-zh",
            SYM,
            "句子一:{query}\n句子二:{passage}\n这两个句子表达的意思是否相同?请回答是或不是。\n回答:",
            yes="是",
            no="不是",
        ),
        Template(
            "asym-zh",
            ASYM,
            "问题:{query}\n段落:{passage}\n这个段落能否回答这个问题?请回答能或不能。\n回答:",
            yes="能",
            no="不能",
        ),
    )
}


def find_template(name: str) -> Template:
    """A built-in template by name.

    Raises:
        InputError: if there is none of that name.
    """
    if name not in TEMPLATES:
        raise InputError(f"template: expected one of {sorted(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]
