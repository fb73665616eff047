"""Self-distillation by rewriting (arXiv 2402.13669): the seed model says the answers in its words.

For each supervised example the seed model is shown the request and the right answer and writes its
own; where a verifier accepts one, it takes the answer's place, else the original stays. Training is
that of `full`, or of `lora` where such a section is given. The request that is learned is the
ordinary one: the right answer is in the prompt of the rewriting only.

A paper of 2026 (arXiv 2601.19897) uses the same four letters for another method, an on-policy
distillation from a model that is shown demonstrations; it is not this one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxrecipes.config.sdft_rewrite import SdftRewriteSection
from jaxrecipes.data.examples import Completion, Conversation, Example, Labelled
from jaxrecipes.data.split import stable_fraction
from jaxrecipes.errors import DataError
from jaxrecipes.evaluate.verifiers import of_length, verifier_of, without_phrases
from jaxrecipes.generate.fence import Fence
from jaxrecipes.generate.parse import RejectedAnswerError
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Request

# rewritten: the accepted text is learned. copied: it is the original, word for word. fallback: none
# was accepted. original: the mixing ratio keeps this one as it was.
Status = Literal["rewritten", "copied", "fallback", "original"]

INSTRUCTION, REFERENCE, RESPONSE = "### Request:", "### Reference answer:", "### Your answer:"
HEADINGS = (INSTRUCTION, REFERENCE, RESPONSE)
WORDINGS = {
    "guide": "You are given a request and a reference answer to it. Use the reference answer as a "
    "guide and write your own answer to the request.",
    "refer": "You are given a request and a reference answer to it. Refer to the reference answer "
    "and answer the request yourself.",
    "math": "You are good at mathematics and explain each step. You are given a problem and a "
    "reference answer to it. Solve the problem yourself, step by step, and end with the result.",
}
OPENERS = {"math": "Sure, let us solve it step by step.\n"}


@dataclass(frozen=True)
class Item:
    """A supervised example of which one answer can be rewritten.

    Attributes:
        example: As it was read.
        reference: The answer: of a conversation, its last turn; earlier ones stay as they are.
    """

    example: Example
    reference: str


@dataclass(frozen=True)
class Choice:
    """What became of one example, and what is learned of it.

    Attributes:
        id: The example's.
        status: See `Status`; each example has one.
        text: The answer that is learned.
        sample: Which sample it is; None where the original stays.
        reasons: Why samples were not accepted, counted.
        original_nll: Nats a token of the original answer under the seed model; None where it is not
            scored.
        chosen_nll: The same of the answer that is learned.
    """

    id: str
    status: Status
    text: str
    sample: int | None
    reasons: Mapping[str, int]
    original_nll: float | None
    chosen_nll: float | None


def item_of(example: Example) -> Item | None:
    """Returns an example as an item; None where its last turn is no text of the assistant's."""
    if isinstance(example, Completion):
        return Item(example, example.completion)
    chat = example.conversation() if isinstance(example, Labelled) else example
    last = chat.messages[-1]
    if last["role"] != "assistant" or set(last) != {"role", "content"}:
        return None
    return Item(chat, last["content"]) if last["content"].strip() else None


def make_requests(
    items: Sequence[Item], options: SdftRewriteSection, *, seed: int
) -> list[Request]:
    """Asks for rewritings: `samples` of each item, told apart by their seeds.

    Args:
        items: With distinct ids.
        options: How it is asked.
        seed: The experiment's; another one gives other samples.

    Returns:
        Requests whose ids are `request_id` of the example's id and the sample's number.
    """
    drawn = options.sampling
    sampling = Sampling(temperature=drawn.temperature, top_k=drawn.top_k, top_p=drawn.top_p)
    fence = Fence(headings=HEADINGS)
    found = []
    for item in items:
        shape = _prompt(item, options, fence)
        for sample in range(options.samples):
            found.append(
                Request(
                    request_id(item.example.id, sample),
                    messages=shape if isinstance(shape, tuple) else (),
                    prompt=shape if isinstance(shape, str) else None,
                    max_new_tokens=drawn.max_new_tokens,
                    sampling=sampling,
                    seed=_seed(seed, item.example.id, sample),
                )
            )
    return found


def request_id(example_id: str, sample: int) -> str:
    """Names a request; the inverse is `split_request_id`."""
    return json.dumps([example_id, sample])


def split_request_id(id_: str) -> tuple[str, int]:
    """Returns the example's id and the sample's number."""
    example_id, sample = json.loads(id_)
    return example_id, sample


def _prompt(item: Item, options: SdftRewriteSection, fence: Fence) -> tuple[Message, ...] | str:
    example = item.example
    if options.reference == "hidden":
        if isinstance(example, Completion):
            return example.prompt
        assert isinstance(example, Conversation)
        if any(set(turn) != {"role", "content"} for turn in example.messages[:-1]):
            raise DataError(
                f"{example.where}: example {example.id!r} has turns with tool calls or reasoning, "
                "which a teacher is not asked to go on from; leave it out, or show the reference"
            )
        return tuple(
            Message(message["role"], message["content"]) for message in example.messages[:-1]
        )
    # The headings divide the prompt; a text that holds one has it broken.
    parts = [
        options.instruction or WORDINGS[options.wording],
        f"{INSTRUCTION}\n{fence.neutralise(_request_text(example))}",
        f"{REFERENCE}\n{fence.neutralise(item.reference)}",
        RESPONSE,
    ]
    turns = [Message("user", "\n\n".join(parts))]
    opener = options.opener if options.opener is not None else OPENERS.get(options.wording, "")
    if opener:
        turns.append(Message("assistant", opener))
    return tuple(turns)


def _request_text(example: Example) -> str:
    if isinstance(example, Completion):
        return example.prompt
    assert isinstance(example, Conversation)
    before = example.messages[:-1]
    if len(before) == 1:
        return str(before[0].get("content", ""))
    return "\n\n".join(f"({turn['role']}) {turn.get('content', '')}" for turn in before)


def _seed(seed: int, example_id: str, sample: int) -> int:
    digest = hashlib.sha256(json.dumps([seed, example_id, sample]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def accept(text: str, item: Item, options: SdftRewriteSection) -> str:
    """Returns a rewriting as it would be learned.

    Args:
        text: What the teacher wrote.
        item: What it was asked to rewrite.
        options: The verifiers.

    Returns:
        The text without blanks around it; where its words are the original's, the original.

    Raises:
        RejectedAnswerError: It may not take the original's place.
    """
    text = text.strip()
    if any(heading in text for heading in HEADINGS):
        raise RejectedAnswerError("repeats the prompt")
    for verify in (
        of_length(options.shortest, options.longest),
        without_phrases(options.giveaways),
        verifier_of(options.task, options.labels),
    ):
        reason = verify(text, item.reference)
        if reason:
            raise RejectedAnswerError(reason)
    if text.split() == item.reference.split():
        return item.reference
    # What stands between the prompt and a plain completion belongs to it: most begin with a blank.
    if isinstance(item.example, Completion):
        before = len(item.reference) - len(item.reference.lstrip())
        return item.reference[:before] + text
    return text


def choose(
    item: Item,
    accepted: Mapping[int, str],
    reasons: Sequence[str],
    nll: Mapping[int | None, float],
    options: SdftRewriteSection,
    *,
    seed: int,
) -> Choice:
    """Chooses the answer that is learned: of the accepted ones, the likeliest to the seed model.

    Args:
        item: The example.
        accepted: Sample -> text, as `accept` returned it.
        reasons: Why the other samples were not.
        nll: Nats a token under the seed model, of samples and, under None, of the original. A
            sample without one does not fit into a row, and is not used.
        options: The mixing ratio.
        seed: Decides which examples the ratio leaves as they were.
    """
    id_, original = item.example.id, nll.get(None)
    fitting = {sample: text for sample, text in accepted.items() if sample in nll}
    counted = Counter(reasons)
    counted["longer than a row"] += len(accepted) - len(fitting)
    counts = {reason: number for reason, number in counted.items() if number}
    if not fitting:
        status: Status = "fallback"
        return Choice(id_, status, item.reference, None, counts, original, original)
    best = min(fitting, key=lambda sample: (nll[sample], sample))
    if stable_fraction(f"ratio\0{id_}", seed) >= options.ratio:
        return Choice(id_, "original", item.reference, None, counts, original, original)
    status = "copied" if fitting[best] == item.reference else "rewritten"
    return Choice(id_, status, fitting[best], best, counts, original, nll[best])


def with_answer(example: Example, text: str) -> Example:
    """Returns an example with another answer; with its own one, it is equal to what it was."""
    if isinstance(example, Completion):
        return replace(example, completion=text)
    chat = example.conversation() if isinstance(example, Labelled) else example
    last = {**chat.messages[-1], "content": text}
    return replace(chat, messages=(*chat.messages[:-1], last))


def row_of(example: Example) -> dict[str, Any]:
    """Writes an example as a row of shape prompt_completion that is read as the same example."""
    if isinstance(example, Completion):
        return {"id": example.id, "prompt": example.prompt, "completion": example.completion}
    chat = example.conversation() if isinstance(example, Labelled) else example
    if not chat.first_supervised:
        row: dict[str, Any] = {"id": chat.id, "messages": [dict(turn) for turn in chat.messages]}
    else:
        turns = [dict(turn) for turn in chat.messages]
        before, after = turns[: chat.first_supervised], turns[chat.first_supervised :]
        row = {"id": chat.id, "prompt": before, "completion": after}
    return row if chat.tools is None else {**row, "tools": [dict(tool) for tool in chat.tools]}


def summarise(choices: Sequence[Choice], rejected: Mapping[str, int]) -> dict[str, Any]:
    """Counts what became of the examples.

    Args:
        choices: One for each example.
        rejected: Reason -> number of samples.

    Returns:
        JSON values: `examples`; `rewritten`, `copied`, `fallback`, `original`, each a number;
        `original_nll` and `chosen_nll`, the mean over rewritten examples of nats a token under the
        seed model before and after, None where nothing was rewritten; `reasons`.
    """
    counts = Counter(choice.status for choice in choices)
    changed = [
        (choice.original_nll, choice.chosen_nll)
        for choice in choices
        if choice.status == "rewritten"
        and choice.original_nll is not None
        and choice.chosen_nll is not None
    ]
    before, after = (
        (sum(one) / len(changed) for one in zip(*changed, strict=True)) if changed else (None, None)
    )
    return {
        "examples": len(choices),
        **{name: counts.get(name, 0) for name in ("rewritten", "copied", "fallback", "original")},
        "original_nll": before,
        "chosen_nll": after,
        "reasons": dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
    }
