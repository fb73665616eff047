"""Imports go down the list of rooms only, so that each can be read without those above it."""

from __future__ import annotations

import ast
from pathlib import Path

import jaxrecipes

# From the top; a file beside the rooms belongs where it is listed.
ROOMS = (
    ("__main__",),
    ("cli",),
    ("plan",),
    ("experiment",),
    ("shipped_configs",),
    ("recipes",),
    ("config",),
    ("stages",),
    ("report",),
    ("evaluate",),
    ("generate",),
    ("neighbors",),
    ("train",),
    ("data",),
    ("checkpoint",),
    ("params",),
    ("models",),
    ("sharding",),
    ("hosts",),
    ("arguments", "durable", "environment", "failures", "supervise"),
    ("errors", "__init__"),
)
HEIGHT = {room: -place for place, rooms in enumerate(ROOMS) for room in rooms}
PACKAGE = Path(jaxrecipes.__file__).parent


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxrecipes" and len(parts) > 1:
                found.add(parts[1])
    return found


def test_every_file_imports_only_what_is_below_its_room():
    upwards = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        room = place.parts[0] if len(place.parts) > 1 else place.stem
        assert room in HEIGHT, f"{place}: the room {room} is in no list"
        upwards += [
            f"{place} imports {other}" for other in imports(path) if HEIGHT[other] > HEIGHT[room]
        ]
    assert upwards == []
