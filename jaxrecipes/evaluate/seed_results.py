"""Finished fine-tunings in a file, one line for each arm and seed, so that none runs twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxrecipes.durable import write_errors

SeedRow = dict[str, Any]


@dataclass(frozen=True)
class SeedResults:
    """Results of arms and seeds in a JSONL file.

    A row has `arm`, `seed`, `options` and what its writer puts beside them, `predictions` (int
    [test rows]) among it.

    Attributes:
        path: The file; it need not be there.
    """

    path: Path

    def all_rows(self) -> list[SeedRow]:
        """Returns every whole row, in the order of the file."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed while it wrote
            if isinstance(row, dict) and {"arm", "seed", "options"} <= row.keys():
                found.append(row)
        return found

    def rows(self, arm: str, options: Mapping[str, Any]) -> dict[int, SeedRow]:
        """Returns an arm's rows by seed.

        Args:
            arm: The arm.
            options: All that decides a result besides arm and seed; rows with others are left out.
        """
        wanted = json.loads(json.dumps(options))
        return {
            row["seed"]: row
            for row in self.all_rows()
            if row["arm"] == arm and row["options"] == wanted
        }

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row, durably.

        Raises:
            JaxrecipesError: The file cannot be written.
        """
        with write_errors(self.path, "the results"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A new line first: the end of a killed run's last line may be missing.
            broken = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if broken else "") + json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
