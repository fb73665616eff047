"""The verb `generate`: a model's answers to prompts, on the terminal or in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
from rich.console import Console

from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.tokenizer import end_token_ids, load_tokenizer
from jaxrecipes.durable import hash_file
from jaxrecipes.errors import DataError, UsageError
from jaxrecipes.generate.answer_file import AnswerFile
from jaxrecipes.generate.engine import OnProgress
from jaxrecipes.generate.local_teacher import LocalTeacher
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Reply, Request, Role
from jaxrecipes.generate.writing_progress import writing_progress

Prompt = str | tuple[Message, ...]


def generate(
    checkpoint: str,
    prompts: Sequence[str],
    *,
    console: Console,
    input_file: Path | None = None,
    output: Path | None = None,
    max_new_tokens: int = 128,
    sampling: Sampling,
    stop: Sequence[str] = (),
    samples: int = 1,
    seed: int = 0,
    slots: int = 32,
    raw: bool = False,
) -> int | None:
    """Lets a model answer, prints the answers or writes them to a file.

    Args:
        checkpoint: Folder, GGUF file, hub id or `package:<name>`.
        prompts: What the user says.
        console: Where to print.
        input_file: More prompts, see `read_prompt_file`.
        output: A JSONL file, see `AnswerFile`; what it has already is not written again.
        max_new_tokens: Longest answer, in tokens.
        sampling: How tokens are drawn.
        stop: An answer ends before the first of these texts.
        samples: Answers to each prompt.
        seed: Seed of the draws; each answer has its own, by the prompt's place and its number.
        slots: Most answers that are written at the same time.
        raw: Continue texts instead of answering in the chat template; a model without a template
            always does.

    Returns:
        None: done.

    Raises:
        UsageError: `samples` is below 1.
        DataError: The file of prompts cannot be used, or a prompt cannot be answered.
    """
    asked: list[tuple[str, Prompt]] = [
        (str(number), prompt) for number, prompt in enumerate(prompts)
    ]
    if input_file is not None:
        asked += read_prompt_file(input_file)
    if samples < 1:
        raise UsageError(f"--samples is {samples}; expected at least 1")
    source = resolve_reference(checkpoint)
    model = import_checkpoint(source, dtype=jnp.dtype("float32"))
    tokenizer: Any = load_tokenizer(source)
    raw = raw or not getattr(tokenizer, "chat_template", None)
    common = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": tuple(stop)}
    requests = [
        Request(
            name if samples == 1 else f"{name}#{sample}",
            **_asked(name, prompt, raw),
            **common,
            seed=_seed(seed, name, sample),
        )
        for name, prompt in asked
        for sample in range(samples)
    ]
    file = None
    if output is not None:
        file = AnswerFile(output, {"weights": _fingerprint(source), "raw": raw})
    missing = [one for one in requests if file is None or file.text(one) is None]
    by_id = {request.id: request for request in missing}
    if len(by_id) < len(missing):
        raise DataError(f"{input_file}: two prompts have the same id; ids have to differ")
    end_ids = end_token_ids(source, model.hf_config)
    own_end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    failed: list[Reply] = []
    texts: dict[str, str] = {}

    def keep(reply: Reply) -> None:
        if reply.finish == "failed":
            failed.append(reply)
            return
        texts[reply.id] = reply.text
        if file is not None:
            file.append(by_id[reply.id], reply)

    def answer(on_progress: OnProgress | None) -> None:
        LocalTeacher(
            model.config,
            model.params,
            tokenizer,
            identity={},  # the file has one of its own
            slots=slots,
            eos_ids=sorted({*end_ids, *own_end}),
            on_progress=on_progress,
        ).answer(missing, keep)

    if file is None:
        answer(None)
        _print(console, requests, texts)
    else:
        if len(missing) < len(requests):
            found = len(requests) - len(missing)
            console.print(f"{output} has {found} of {len(requests)} answers", highlight=False)
        with writing_progress(console, title="answers", total=len(missing)) as on_progress:
            answer(on_progress)
        console.print(f"answers: {output}", highlight=False)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(requests)} prompts could not be answered; the first, "
            f"{failed[0].id}: {failed[0].error}"
        )
    return None


def read_prompt_file(path: Path) -> list[tuple[str, Prompt]]:
    """Reads prompts.

    Args:
        path: JSONL with `prompt`, or `messages` (a chat), and perhaps `id` on each line; any other
            file has one prompt a line. Blank lines are skipped.

    Returns:
        (id, prompt) each; the id is the line's number where the line has none.

    Raises:
        DataError: Names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    found: list[tuple[str, Prompt]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl":
            found.append((str(number), line.rstrip("\r")))
            continue
        try:
            row = json.loads(line)
            prompt = row.get("prompt")
            if prompt is None:
                prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
            roles = [turn.role for turn in prompt] if isinstance(prompt, tuple) else []
            if not prompt or set(roles) - set(get_args(Role)):
                raise ValueError
            found.append((str(row.get("id", number)), prompt))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{path}:{number}: expected a JSON object with a text `prompt`, or with "
                f"`messages`, a list of objects with role ({', '.join(get_args(Role))}) and content"
            ) from None
    return found


def _asked(name: str, prompt: Prompt, raw: bool) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt} if raw else {"messages": (Message("user", prompt),)}
    if raw:
        raise DataError(
            f"prompt {name} is a chat, and there is no chat template (or --raw says to use none); "
            "give texts in `prompt`"
        )
    return {"messages": prompt}


def _seed(seed: int, name: str, sample: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _fingerprint(source: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that says what a checkpoint computes and how it reads."""
    if source.is_file():
        return {source.name: hash_file(source)}
    suffixes = (".safetensors", ".json", ".jinja", ".model", ".txt")
    files = sorted(path for path in source.iterdir() if path.suffix in suffixes)
    return {path.name: hash_file(path) for path in files}


def _print(console: Console, requests: Sequence[Request], texts: Mapping[str, str]) -> None:
    for request in requests:
        if request.id not in texts:
            continue
        if len(requests) > 1:
            said = request.messages[-1].content if request.messages else request.prompt
            console.print(f"> {said}", style="bold", markup=False, highlight=False)
        console.print(texts[request.id].strip(), markup=False, highlight=False)
