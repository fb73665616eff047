"""A real server of the protocol: `transformers serve` with SmolLM2, in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxrecipes.generate.ask import ask
from jaxrecipes.generate.budget import Budget
from jaxrecipes.generate.openai_call import Dialect
from jaxrecipes.generate.openai_teacher import OpenAITeacher, Server
from jaxrecipes.generate.reply_store import ReplyStore
from jaxrecipes.generate.retry import Retries
from jaxrecipes.generate.sampling import Sampling
from jaxrecipes.generate.teacher import Message, Request

pytestmark = pytest.mark.long
TORCH = pytest.importorskip("torch")
for needed in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(needed, reason=f"transformers serve needs {needed}")

QUESTIONS = ("What is the capital of France?", "Name a colour.", "What is 2 + 2?")


@pytest.fixture(scope="module")
def address(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts the server and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert command is not None
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "serve", str(smollm2_folder), "--host", "127.0.0.1", "--port", str(port)]
            + ["--device", "cpu", "--dtype", "float32"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            deadline = time.monotonic() + 900
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def greedy(folder: Path, question: str, tokens: int) -> str:
    """What the model answers, decoded here by `transformers`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=TORCH.float32)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = written[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("stream", ["off", "plain"])
def test_a_real_server_answers_as_the_model_does(address, smollm2_folder, tmp_path, stream):
    server = Server(
        address,
        str(smollm2_folder),
        concurrency=2,
        retries=Retries(attempts=2, first_wait=0.5),
        dialect=Dialect(stream=stream),
    )
    chats = [
        Request(question, messages=(Message("user", question),), max_new_tokens=16)
        for question in QUESTIONS
    ]
    plain = Request("plain", prompt="The capital of France is", max_new_tokens=4)
    drawn = Request("drawn", prompt="Once", max_new_tokens=4, sampling=Sampling(temperature=1.0))
    teacher = OpenAITeacher(server)
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        budget = Budget(requests=20, tokens=50_000)
        replies = ask(teacher, [*chats, plain, drawn], store=store, budget=budget)
        requests, tokens = store.spent(teacher.identity)
    assert {reply.finish for reply in replies.values()} <= {"stop", "length"}, replies
    for question in QUESTIONS:
        expected = greedy(smollm2_folder, question, 16)
        assert replies[question].text.strip() == expected.strip()
    assert "Paris" in replies["plain"].text
    counted = [(reply.prompt_tokens, reply.new_tokens) for reply in replies.values()]
    assert requests == 5
    assert tokens == sum((read or 0) + (new or 0) for read, new in counted)
    assert all(new and new <= 16 for _, new in counted)
