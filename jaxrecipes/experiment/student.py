"""A fine-tuned student that is asked the items of a task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from rich.console import Console

from jaxrecipes.checkpoint.huggingface import import_checkpoint, read_model_config
from jaxrecipes.checkpoint.tokenizer import load_tokenizer
from jaxrecipes.config.llm2llm import ProbeSection
from jaxrecipes.data.task_items import TaskItem
from jaxrecipes.evaluate.answer_tasks import AnswerTask
from jaxrecipes.experiment.ask_progress import asking
from jaxrecipes.experiment.devices import local_execution, model_shardings
from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.local_teacher import LocalTeacher
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.generate.teacher import Message, Request, Teacher


def open_student(folder: Path, key: str, *, slots: int, compute_dtype: str) -> Teacher:
    """Opens a fine-tuned model to be asked.

    Args:
        folder: Its Hugging Face folder.
        key: Says which weights these are.
        slots: Answers decoded together.
        compute_dtype: Number type of weights and activations.
    """
    dtype = jnp.dtype(compute_dtype)
    places = model_shardings(read_model_config(folder), local_execution().mesh)
    imported = import_checkpoint(folder, dtype=dtype, shardings=places)
    return LocalTeacher(
        imported.config,
        imported.params,
        load_tokenizer(folder),
        identity={"student": key},
        slots=slots,
        compute_dtype=dtype,
    )


def student_requests(
    task: AnswerTask,
    items: Sequence[TaskItem],
    section: ProbeSection,
    *,
    samples: int = 1,
    seed: int = 0,
) -> list[Request]:
    """Puts items as they are put in training; ids are `item/number of the sample`.

    Args:
        task: The task.
        items: What is asked.
        section: Longest answer, and the temperature where there are several samples.
        samples: Answers to each.
        seed: Of the draws.
    """
    sampling = Sampling(section.temperature) if section.temperature and samples > 1 else GREEDY
    found = []
    for item in items:
        prompt = task.prompt(item.question)
        for number in range(samples):
            name = f"{item.id}/{number}"
            digest = hashlib.sha256(f"probe {seed} {name}".encode()).digest()
            found.append(
                Request(
                    name,
                    (Message("user", prompt),) if task.form == "chat" else (),
                    prompt=None if task.form == "chat" else prompt,
                    max_new_tokens=section.max_new_tokens,
                    sampling=sampling,
                    seed=0 if sampling == GREEDY else int.from_bytes(digest[:4], "big"),
                )
            )
    return found


def answers_of(
    student: Teacher,
    task: AnswerTask,
    items: Sequence[TaskItem],
    section: ProbeSection,
    *,
    store: ReplyStore,
    console: Console,
    title: str,
    samples: int = 1,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Asks a student items; answers that are in the store are not asked for again.

    Args:
        student: From `open_student`.
        task: The task.
        items: What is asked.
        section: How.
        store: Where answers are kept.
        console: For the progress line.
        title: What it says.
        samples: Answers to each item.
        seed: Of the draws.

    Returns:
        Item -> its answers; "" where the prompt was too long for the model.
    """
    requests = student_requests(task, items, section, samples=samples, seed=seed)
    with asking(console, title) as show:
        replies = ask(student, requests, store=store, progress=show)
    return {
        item.id: [replies[f"{item.id}/{number}"].text for number in range(samples)]
        for item in items
    }
