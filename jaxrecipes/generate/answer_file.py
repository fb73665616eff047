"""A JSONL file of answers that grows line by line, and that the next run goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrecipes.durable import hash_values, write_errors
from jaxrecipes.errors import DataError
from jaxrecipes.generate.teacher import Reply, Request


class AnswerFile:
    """Answers on disk, one a line: `key`, `id`, what was asked, `text`, `finish`, `new_tokens`.

    The key is a hash of the request and of who answers it, so that a line is never taken for the
    answer to something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Reads what is there; a last line that was cut by a kill is taken off.

        Args:
            path: The file; it need not exist.
            identity: The teacher's.

        Raises:
            DataError: A line is none of such a file.
        """
        self._path, self._identity = path, dict(identity)
        self._texts: dict[str, str] = {}
        with write_errors(path, "the file of answers"):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                with path.open("r+b") as file:
                    file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._texts[row["key"]] = row["text"]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{path}:{number}: this is no answer of `jaxrecipes generate`; expected a JSON "
                    "object with key and text. Give another --output."
                ) from None

    def key(self, request: Request) -> str:
        """Returns the key of a request."""
        return hash_values({"teacher": self._identity, "request": request.key})

    def text(self, request: Request) -> str | None:
        """Returns the answer to a request; None if there is none yet."""
        return self._texts.get(self.key(request))

    def append(self, request: Request, reply: Reply) -> None:
        """Adds an answer, which is on disk when this returns.

        Raises:
            JaxrecipesError: It cannot be written.
        """
        asked: dict[str, Any] = {"prompt": request.prompt}
        if request.messages:
            turns = [{"role": one.role, "content": one.content} for one in request.messages]
            asked = {"messages": turns}
        key = self.key(request)
        row = {
            "key": key,
            "id": request.id,
            **asked,
            "text": reply.text,
            "finish": reply.finish,
            "new_tokens": reply.new_tokens,
        }
        with write_errors(self._path, "the file of answers"), self._path.open("ab") as file:
            # Escaped: a text may hold halves of surrogate pairs.
            file.write((json.dumps(row) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self._texts[key] = reply.text
