"""Typed access to the JSON files of a checkpoint, with errors that name the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrecipes.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        CheckpointError: The file is missing, unreadable, not UTF-8, not JSON or not an object.
    """
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_value(path: Path) -> Any:
    """Reads a JSON value of any type from a file.

    Raises:
        CheckpointError: The file is missing, unreadable, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; a Hugging Face checkpoint folder has config.json, safetensors "
            f"files and tokenizer files"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}; is the download complete?"
        ) from None


@dataclass(frozen=True)
class ConfigReader:
    """Typed access to a JSON object; each error names the key, its value and what was expected.

    Attributes:
        values: The object.
        where: Put before error messages, for example the file's path.
    """

    values: Mapping[str, Any]
    where: str

    def _get(self, key: str, default: Any, kinds: tuple[type, ...], name: str) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.where}: key {key!r} is missing; expected {name}")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise CheckpointError(f"{self.where}: key {key!r} is {value!r}; expected {name}")
        return value

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Returns a whole number that is at least `minimum`."""
        name = "a positive whole number" if minimum == 1 else f"a whole number from {minimum} on"
        value = self._get(key, default, (int,), name)
        if value < minimum:
            raise CheckpointError(f"{self.where}: key {key!r} is {value}; expected {name}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive finite number."""
        value = float(self._get(key, default, (int, float), "a positive number"))
        if not 0 < value < float("inf"):
            raise CheckpointError(
                f"{self.where}: key {key!r} is {value}; expected a positive number"
            )
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false."""
        return self._get(key, default, (bool,), "true or false")

    def text(self, key: str, default: str | None = None) -> str:
        """Returns a string."""
        return self._get(key, default, (str,), "a string")

    def optional_integer(self, key: str) -> int | None:
        """Returns a positive whole number, or None where the key is absent or null."""
        return None if self.values.get(key) is None else self.integer(key)

    def optional_number(self, key: str) -> float | None:
        """Returns a positive finite number, or None where the key is absent or null."""
        return None if self.values.get(key) is None else self.number(key)

    def integers(self, key: str) -> list[int]:
        """Returns a list of whole numbers, empty where the key is absent."""
        value = self._get(key, [], (list,), "a list of whole numbers")
        if any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            raise CheckpointError(
                f"{self.where}: key {key!r} is {value!r}; expected a list of whole numbers"
            )
        return value
