"""Replies of teachers on disk, so that nothing is asked for twice."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxrecipes.durable import hash_values
from jaxrecipes.errors import DataError, JaxrecipesError
from jaxrecipes.generate.teacher import Reply

_SCHEMA = """
CREATE TABLE IF NOT EXISTS teachers (key TEXT PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS replies (
    teacher TEXT NOT NULL, request TEXT NOT NULL, reply TEXT NOT NULL,
    PRIMARY KEY (teacher, request)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    number INTEGER PRIMARY KEY, teacher TEXT NOT NULL, tokens INTEGER NOT NULL
);
"""
_LOOK_UP = 500
_WAIT_SECONDS = 60.0


class ReplyStore:
    """An sqlite file with one reply for each teacher and request.

    A reply is on disk when `put` returns. Replies are found by what determines them (the teacher's
    identity and the request's key), so a changed prompt or another model never meets an old one.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            DataError: The file is there and is no store of replies.
            JaxrecipesError: It cannot be made.
        """
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Replies arrive on whatever thread the teacher has; the lock keeps them apart.
            self._connection = sqlite3.connect(
                path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                # A write-ahead log takes one wait for the disk a reply; a journal takes three.
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._connection.executescript(_SCHEMA)
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> ReplyStore:
        """Nothing more to do."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self.close()

    def close(self) -> None:
        """Closes the file; what was put is on disk already."""
        self._connection.close()

    def get(self, identity: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Reply]:
        """Finds replies.

        Args:
            identity: The teacher's.
            keys: Keys of requests.

        Returns:
            Key -> reply for those that are there; the id of a reply is the key.

        Raises:
            DataError: The file is damaged.
        """
        teacher, wanted, found = hash_values(identity), list(dict.fromkeys(keys)), {}
        with self._lock, self._errors():
            for at in range(0, len(wanted), _LOOK_UP):
                part = wanted[at : at + _LOOK_UP]
                rows = self._connection.execute(
                    "SELECT request, reply FROM replies WHERE teacher = ? AND request IN "
                    f"({','.join('?' * len(part))})",
                    [teacher, *part],
                )
                for key, text in rows:
                    found[key] = Reply(id=key, **json.loads(text))
        return found

    def put(self, identity: Mapping[str, Any], key: str, reply: Reply) -> None:
        """Keeps a reply, durably; the first one for a key stays.

        Args:
            identity: The teacher's.
            key: The request's key.
            reply: A final one.

        Raises:
            ValueError: The reply failed: a failure is no answer, and is not kept as one.
            JaxrecipesError: It cannot be written.
        """
        if reply.finish == "failed":
            raise ValueError("a failed reply is not final")
        # JSON with escapes: a text may hold NULs and halves of surrogate pairs.
        values = {
            "text": reply.text,
            "finish": reply.finish,
            "prompt_tokens": reply.prompt_tokens,
            "new_tokens": reply.new_tokens,
        }
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                teacher = self._teacher(identity)
                self._connection.execute(
                    "INSERT OR IGNORE INTO replies VALUES (?, ?, ?)",
                    (teacher, key, json.dumps(values)),
                )
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def spent(self, identity: Mapping[str, Any]) -> tuple[int, int]:
        """Returns how often a teacher was asked, and how many tokens that took at most."""
        with self._lock, self._errors():
            row = self._connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(tokens), 0) FROM spending WHERE teacher = ?",
                (hash_values(identity),),
            ).fetchone()
        return int(row[0]), int(row[1])

    def begin_spending(self, identity: Mapping[str, Any], tokens: int) -> int:
        """Writes down, durably, that a teacher is about to be asked.

        Args:
            identity: The teacher's.
            tokens: The most that it can cost.

        Returns:
            The number of the entry.
        """
        with self._lock, self._errors():
            cursor = self._connection.execute(
                "INSERT INTO spending (teacher, tokens) VALUES (?, ?)",
                (hash_values(identity), tokens),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def settle_spending(self, number: int, tokens: int) -> None:
        """Replaces what an entry could cost by what it did."""
        with self._lock, self._errors():
            self._connection.execute(
                "UPDATE spending SET tokens = ? WHERE number = ?", (tokens, number)
            )

    def _teacher(self, identity: Mapping[str, Any]) -> str:
        key = hash_values(identity)
        text = json.dumps(identity, sort_keys=True)
        self._connection.execute("INSERT OR IGNORE INTO teachers VALUES (?, ?)", (key, text))
        return key

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # The base class stands for a file that is no database; a full disk or a missing right
            # is its subclass OperationalError.
            if isinstance(error, sqlite3.OperationalError):
                raise JaxrecipesError(
                    f"{self._path}: replies cannot be read or written ({error}). Check the rights, "
                    "the free space (df -h) and that no other run uses this folder, then run the "
                    "same command again: answers that are there are not asked for again."
                ) from None
            raise DataError(
                f"{self._path}: this is no store of replies, or a damaged one ({error}). Move it "
                "away and run the same command again: all answers are then asked for anew."
            ) from None
        except OSError as error:
            raise JaxrecipesError(
                f"{self._path}: cannot be made ({error.strerror or error}); give a folder that can "
                "be written"
            ) from None
