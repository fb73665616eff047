"""Tasks whose answers can be checked: how a question is put, what an answer says, what is right.

One prompt serves training and measuring alike. Numbers are compared as numbers, labels as one of
the task's labels, other answers as texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

from jaxrecipes.data.task_items import LETTERS, Layout, TaskItem
from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.numbers import answer_number, find_numbers

Form = Literal["text", "chat"]
Reading = Literal["hashes", "label", "text"]
# What an answer says: a number, a label, a text.
Said = Fraction | str


@dataclass(frozen=True)
class AnswerTask:
    """A kind of questions, and how their answers are read.

    Attributes:
        name: Its name in configs.
        layout: What its rows hold.
        instruction: Said before each question; may be empty.
        question_mark: Stands before the question.
        cue: Stands before the answer.
        reading: hashes: the number after `####`. label: one of `labels`. text: the whole first
            line; where the right one is a bare number, as a number.
        labels: The labels, as they are trained; empty for other readings.
        form: text: prompt and answer are joined as they are. chat: the question is the user's
            turn, the answer the assistant's.
    """

    name: str
    layout: Layout
    instruction: str
    question_mark: str
    cue: str
    reading: Reading
    labels: tuple[str, ...] = ()
    form: Form = "text"

    def prompt(self, question: str) -> str:
        """Returns what stands before the answer, in training and when it is asked for."""
        parts = [self.instruction] if self.instruction else []
        if self.form == "chat":
            return "\n\n".join([*parts, question])
        return "\n\n".join([*parts, f"{self.question_mark}{question}\n{self.cue}"])

    def row(self, item_id: str, question: str, answer: str) -> dict[str, Any]:
        """Returns an example for training, of which only the answer and its end are learned."""
        if self.form == "chat":
            messages = [
                {"role": "user", "content": self.prompt(question)},
                {"role": "assistant", "content": answer},
            ]
            return {"id": item_id, "messages": messages}
        return {"id": item_id, "prompt": self.prompt(question), "completion": f" {answer}"}

    def read(self, text: str) -> Said | None:
        """Returns what an answer says; None where it says nothing that the task knows."""
        if self.reading == "hashes":
            return answer_number(text, "hashes")
        stripped = text.strip()
        line = " ".join(stripped.split("\n", 1)[0].split()) if stripped else ""
        if self.reading == "label":
            return _label(line, self.labels)
        number = bare_number(line)
        return line.casefold() or None if number is None else number

    def is_right(self, said: Said | None, answer: str) -> bool:
        """Whether an answer that was read says what the right one does."""
        return said is not None and said == self.read(answer)

    @property
    def rules(self) -> tuple[str, ...]:
        """What whoever writes a new item has to know of its answer, a sentence each."""
        if self.layout == "choices":
            return (
                "The question ends with choices, one a line, which begin with A. and B. and so on.",
                "The answer is the letter of the right one.",
            )
        if self.reading == "hashes":
            return (
                "The answer shows the calculation in less than 100 words, without a mistake, and "
                "ends with a line of #### and the result, which is one number without a unit.",
            )
        if self.reading == "label":
            return (f"The answer is one of these words: {', '.join(self.labels)}.",)
        return ("The answer is short, on one line.",)

    def fits(self, question: str, said: Said) -> bool:
        """Whether a question can have an answer: the choice that it names is among the others."""
        if self.layout != "choices":
            return True
        letters = re.findall(r"^([A-J])\. ", question, re.MULTILINE)
        return said in letters and letters == list(LETTERS[: len(letters)]) and len(letters) > 1

    def majority_is_right(self, texts: Sequence[str], answer: str) -> bool:
        """Whether more than half of several answers to one question are right."""
        right = sum(self.is_right(self.read(text), answer) for text in texts)
        return 2 * right > len(texts)


def bare_number(text: str) -> Fraction | None:
    """Reads a text that is a number and nothing else."""
    found = find_numbers(text)
    whole = len(found) == 1 and (found[0].start, found[0].end) == (0, len(text))
    return found[0].value if whole else None


def _label(line: str, labels: Sequence[str]) -> str | None:
    """Finds the label that a line is, up to case and punctuation around it."""
    plain = line.strip(" .,:;!\"'()[]*").casefold()
    by_name = {label.casefold(): label for label in labels}
    if plain in by_name:
        return by_name[plain]
    # "B. because ..." and "positive, since ..." name one label, and no other.
    first = re.match(r"[\w-]+", plain)
    return by_name.get(first[0]) if first is not None and len(plain) > len(first[0]) else None


TASKS: Mapping[str, AnswerTask] = {
    task.name: task
    for task in (
        AnswerTask(
            "gsm8k",
            "question_answer",
            "Solve the problem step by step. End with a line of #### and the number.",
            "Question: ",
            "Answer:",
            "hashes",
        ),
        AnswerTask(
            "casehold",
            "choices",
            "Which of the lettered holdings is the one that the text cites?",
            "",
            "Answer:",
            "label",
        ),
        AnswerTask("snips", "label", "", "", "Intent:", "label"),
        AnswerTask("trec", "label", "", "", "Class:", "label"),
        AnswerTask("sst2", "label", "", "", "Sentiment:", "label"),
        AnswerTask("plain", "question_answer", "", "", "", "text"),
    )
}


def task_of(
    name: str, items: Sequence[TaskItem], *, form: Form = "text", instruction: str | None = None
) -> AnswerTask:
    """Returns a task with the labels that its items have.

    Args:
        name: One of `TASKS`.
        items: The seeds: their answers are what the model learns to say.
        form: See `AnswerTask`.
        instruction: In place of the task's own; None: that.

    Raises:
        DataError: An item's own answer cannot be read, or there is one label only; names it.
    """
    task = replace(TASKS[name], form=form)
    if instruction is not None:
        task = replace(task, instruction=instruction)
    if task.layout == "choices":
        task = replace(task, labels=tuple(LETTERS))
    elif task.reading == "label":
        labels = tuple(sorted(Counter(item.answer for item in items)))
        if len(labels) < 2 or len({label.casefold() for label in labels}) < len(labels):
            raise DataError(
                f"the labels of the seeds are {', '.join(labels)}; expected at least two that "
                "differ in more than case"
            )
        task = replace(task, labels=labels)
    check_answers(task, items)
    return task


def check_answers(task: AnswerTask, items: Sequence[TaskItem]) -> None:
    """Refuses items whose own answer does not say what the task could compare.

    Raises:
        DataError: Names the first of them.
    """
    expected = {
        "hashes": "a solution that ends with #### and one number",
        "label": f"one of {', '.join(task.labels)}",
        "text": "an answer that is not empty",
    }
    for item in items:
        if task.read(item.answer) is None:
            raise DataError(
                f"{item.where or item.id}: the answer {item.answer[-80:]!r} cannot be read; "
                f"expected {expected[task.reading]} (task {task.name})"
            )
