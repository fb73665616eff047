"""A server of the OpenAI protocol that misbehaves as it is told, in a thread of the test."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (what the client asked, how often it has asked this before) -> what the server does.
Behaviour = Callable[[str, int], str]


class Chaos:
    """What a server was asked, and what it did.

    Behaviours: fine, 429, 429-later, 500, 503-html, garbage, empty, no-choices, cut, drip, never,
    close, filter, odd-types, 400, 401, 404, quota, long.
    """

    def __init__(self, behave: Behaviour):
        self.behave = behave
        self.times_asked: Counter[str] = Counter()
        self.times_answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.url = ""

    @property
    def asked(self) -> int:
        """Calls in all."""
        return sum(self.times_asked.values())


def question(body: dict[str, Any]) -> str:
    """What was asked: the prompt or the last turn."""
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


@contextmanager
def serving(behave: Behaviour) -> Iterator[Chaos]:
    """Runs a server on 127.0.0.1 for as long as the block lasts."""
    chaos = Chaos(behave)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = question(body)
            with chaos.lock:
                before = chaos.times_asked[asked]
                chaos.times_asked[asked] += 1
                chaos.bodies.append(body)
                chaos.headers.append({name.lower(): text for name, text in self.headers.items()})
                chaos.at_once += 1
                chaos.most_at_once = max(chaos.most_at_once, chaos.at_once)
            try:
                misbehave(self, chaos, chaos.behave(asked, before), body)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with chaos.lock:
                    chaos.at_once -= 1

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    chaos.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield chaos
    finally:
        chaos.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, status: int, payload: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(payload)))
    handler.end_headers()
    handler.wfile.write(payload)


def error(handler: BaseHTTPRequestHandler, status: int, code: str, **headers: str) -> None:
    payload = {"error": {"message": f"{code}, dear client", "type": code, "code": code}}
    send(handler, status, json.dumps(payload).encode(), **headers)


def completion(body: dict[str, Any], text: str, reason: str) -> dict[str, Any]:
    said = (
        {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    )
    return {
        "id": "x",
        "object": "completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": reason, **said}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


def misbehave(
    handler: BaseHTTPRequestHandler, chaos: Chaos, behaviour: str, body: dict[str, Any]
) -> None:
    text = f"<{question(body)}>"
    if behaviour == "fine":
        with chaos.lock:
            chaos.times_answered[question(body)] += 1
        if body.get("stream"):
            stream(handler, body, text, cut=False)
        else:
            send(handler, 200, json.dumps(completion(body, text, "stop")).encode())
    elif behaviour == "429":
        error(handler, 429, "rate_limit", Retry_After="0")
    elif behaviour == "429-later":
        error(handler, 429, "rate_limit", Retry_After="86400")
    elif behaviour == "quota":
        error(handler, 429, "insufficient_quota")
    elif behaviour in ("400", "401", "404", "500"):
        # Some servers repeat what they were sent.
        error(handler, int(behaviour), f"bad {handler.headers.get('Authorization')}")
    elif behaviour == "503-html":
        send(handler, 503, b"<html>\xff\xfe busy</html>", Content_Type="text/html")
    elif behaviour == "garbage":
        send(handler, 200, b'{"choices": [{"message"\xff')
    elif behaviour == "empty":
        send(handler, 200, b"")
    elif behaviour == "no-choices":
        send(handler, 200, b'{"choices": [], "object": 7}')
    elif behaviour == "odd-types":
        send(handler, 200, b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}')
    elif behaviour == "filter":
        send(handler, 200, json.dumps(completion(body, "no", "content_filter")).encode())
    elif behaviour == "long":
        send(handler, 200, json.dumps(completion(body, "x" * 10**6, "stop")).encode())
    elif behaviour == "cut":
        if body.get("stream"):
            stream(handler, body, text, cut=True)
        else:
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
        handler.close_connection = True
    elif behaviour == "close":
        handler.close_connection = True
    elif behaviour == "drip":
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        while not chaos.ended.wait(0.02):
            handler.wfile.write(b": still here\n\n")
            handler.wfile.flush()
    elif behaviour == "never":
        chaos.ended.wait(60)
        handler.close_connection = True
    else:
        raise AssertionError(behaviour)


def stream(handler: BaseHTTPRequestHandler, body: dict[str, Any], text: str, *, cut: bool) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    handler.close_connection = True

    def event(values: dict[str, Any] | str) -> None:
        data = values if isinstance(values, str) else json.dumps(values)
        handler.wfile.write(f"data: {data}\n\n".encode())
        handler.wfile.flush()

    def piece(part: str, reason: str | None) -> dict[str, Any]:
        said = {"text": part} if "prompt" in body else {"delta": {"content": part}}
        return {"id": "x", "choices": [{"index": 0, "finish_reason": reason, **said}]}

    middle = len(text) // 2
    event(piece(text[:middle], None))
    if cut:
        return
    event(piece(text[middle:], None))
    event(piece("", "stop"))
    if body.get("stream_options", {}).get("include_usage"):
        event({"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    event("[DONE]")
