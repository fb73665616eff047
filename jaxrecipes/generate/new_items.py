"""What a teacher is asked when new items are wanted, and how its answers are read.

Items go to the teacher as fenced data: whatever a question says, it is not addressed to the
teacher. The answer is one item in a strict layout; everything else is refused with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxrecipes.generate.fence import FENCE_NOTICE, Fence
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Request

QUESTION, ANSWER = "Question:", "Answer:"
# Reasons of `read_item`.
CUT, LAYOUT, SEVERAL, CONTROLS = (
    "cut at its longest",
    "not in the layout",
    "several items in place of one",
    "control tokens in it",
)


@dataclass(frozen=True)
class Example:
    """A question with its right answer, as the teacher sees it.

    Attributes:
        question: The question.
        answer: The right answer.
        wrong: What the student answered instead; None: it is not shown.
    """

    question: str
    answer: str
    wrong: str | None = None


@dataclass(frozen=True)
class ItemWriter:
    """Puts requests for one task.

    Attributes:
        fence: Makes data of texts.
        rules: What a new item must be like, a sentence each.
        sampling: How new items are drawn.
        max_new_tokens: Longest answer, in the teacher's tokens.
        form: chat: one turn of the user. text: a prompt that a base model goes on with.
    """

    fence: Fence
    rules: tuple[str, ...]
    sampling: Sampling
    max_new_tokens: int
    form: Literal["chat", "text"] = "chat"

    def similar(
        self, request_id: str, example: Example, others: Sequence[Example], *, seed: int
    ) -> Request:
        """Asks for a new item that exercises the same skill as one that a student failed.

        Args:
            request_id: The request's id.
            example: The item that was failed.
            others: New items for it that are kept already; another one is wanted.
            seed: Of the draw.
        """
        said = [
            "A student failed the exercise below. Write one new exercise that practises the same "
            "skill: another question of the same kind and difficulty, with other names, numbers "
            "and circumstances, and its right answer."
        ]
        parts = self._show("exercise", example)
        if example.wrong is not None:
            said.append("What the student answered instead is shown, too.")
            parts.append(self.fence.around("wrong answer", example.wrong))
        if others:
            said.append("It must also differ from the exercises that were written before.")
            for one in others:
                parts += self._show("earlier exercise", one)
        return self._request(request_id, said, parts, seed)

    def rephrased(
        self, request_id: str, example: Example, others: Sequence[Example], *, seed: int
    ) -> Request:
        """Asks for an item in other words; its answer stays.

        Args:
            request_id: The request's id.
            example: The item.
            others: Wordings that are there already.
            seed: Of the draw.
        """
        said = [
            "Say the question of the exercise below in other words. Its meaning, every name and "
            "every number in it, and its answer must stay the same."
        ]
        parts = self._show("exercise", example)
        if others:
            said.append("The wording must also differ from the earlier ones.")
            parts += [self.fence.around("earlier wording", one.question) for one in others]
        return self._request(request_id, said, parts, seed)

    def answered(self, request_id: str, question: str, *, sampling: Sampling, seed: int) -> Request:
        """Asks for the answer to a new question, without showing the one that it came with.

        Args:
            request_id: The request's id.
            question: The question.
            sampling: How the answer is drawn.
            seed: Of the draw.
        """
        said = ["Answer the question below.", *self.rules]
        if self.form == "chat":
            said.append(f"Write nothing but the answer, after {ANSWER}")
        parts = [self.fence.around("question", question)]
        return self._ask(request_id, said, parts, ANSWER, sampling=sampling, seed=seed)

    def _show(self, label: str, example: Example) -> list[str]:
        right = self.fence.around("its right answer", example.answer)
        return [self.fence.around(label, example.question), right]

    def _request(
        self, request_id: str, said: Sequence[str], parts: Sequence[str], seed: int
    ) -> Request:
        layout = f"{QUESTION} <the question>\n{ANSWER} <its answer>"
        last = f"Write one item and nothing else, in exactly this layout:\n\n{layout}"
        said = [*said, *self.rules]
        sampling = self.sampling
        return self._ask(request_id, said, [*parts, last], QUESTION, sampling=sampling, seed=seed)

    def _ask(
        self,
        request_id: str,
        said: Sequence[str],
        parts: Sequence[str],
        cue: str,
        *,
        sampling: Sampling,
        seed: int,
    ) -> Request:
        text = "\n\n".join([FENCE_NOTICE, " ".join(said), *parts])
        chat = self.form == "chat"
        return Request(
            request_id,
            (Message("user", text),) if chat else (),
            prompt=None if chat else f"{text}\n\n{cue}",
            max_new_tokens=self.max_new_tokens,
            sampling=sampling,
            # A model that goes on with a text does not know where the item ends.
            stop=() if chat else (f"\n{QUESTION}",),
            seed=seed,
        )

    def read(self, text: str, *, finished: bool) -> Example | str:
        """Reads the answer to `similar` or `rephrased`; see `read_item`."""
        whole = text if self.form == "chat" else f"{QUESTION}{text}"
        return read_item(whole, finished=finished, fence=self.fence)


def read_item(text: str, *, finished: bool, fence: Fence) -> Example | str:
    """Reads a teacher's answer.

    Args:
        text: The answer.
        finished: The teacher ended it, and was not cut off.
        fence: Tells control tokens, which no item may hold.

    Returns:
        The item, or why it is refused.
    """
    if not finished:
        return CUT
    # The layout only: whether the answer is one, the task says.
    heads = re.findall(rf"^[ \t*#]*(?:{QUESTION}|{ANSWER})", text, re.MULTILINE)
    if len(heads) > 2:
        return SEVERAL
    found = re.fullmatch(
        rf"\s*[*#]*\s*{QUESTION}[*\s]*(?P<question>\S.*?)\s*"
        rf"\n[ \t*#]*{ANSWER}[*\s]*(?P<answer>\S.*?)\s*",
        text,
        re.DOTALL,
    )
    if found is None:
        return LAYOUT
    item = Example(found["question"], found["answer"])
    if any(fence.neutralise(part) != part for part in (item.question, item.answer)):
        return CONTROLS
    return item


def read_answer(text: str) -> str:
    """Returns what a teacher answered, without the cue that it may have repeated."""
    return re.sub(rf"^\s*[*#]*\s*{ANSWER}[*\s]*", "", text).strip()
