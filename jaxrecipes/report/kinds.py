"""The kinds of run folders: how each is told, and what writes and shows its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from jaxrecipes.report.page import write_report
from jaxrecipes.report.rehearsal import REHEARSAL_FILE, finished_models
from jaxrecipes.report.rehearsal_page import render_rehearsal, write_rehearsal_report
from jaxrecipes.report.rounds import ROUNDS_FILE, exported_students
from jaxrecipes.report.rounds_page import render_rounds, write_rounds_report
from jaxrecipes.report.seed_page import render_seed_results, write_seed_report
from jaxrecipes.report.seeds import ADAPTIVE_FILE, exported_model
from jaxrecipes.report.terminal import render_results


@dataclass(frozen=True)
class ReportKind:
    """Run folders with one kind of report.

    Attributes:
        marker: A file that only they have; empty for the kind of most recipes.
        write: Writes `results.json` and `report.html`, returns what the former holds.
        render: Makes the tables for a terminal of it.
        exported: Says where below a run folder the finished models are; None where they are those
            of `arms/*/final`, which `jaxrecipes export` copies.
    """

    marker: str
    write: Callable[[Path], Any]
    render: Callable[[Any], RenderableType]
    exported: Callable[[Path], str] | None = None


REPORTS = (
    ReportKind(ADAPTIVE_FILE, write_seed_report, render_seed_results, exported_model),
    ReportKind(ROUNDS_FILE, write_rounds_report, render_rounds, exported_students),
    ReportKind(REHEARSAL_FILE, write_rehearsal_report, render_rehearsal, finished_models),
    ReportKind("", write_report, render_results),
)


def report_kind(run_folder: Path) -> ReportKind:
    """Returns the kind of a run folder; that of most recipes where no marker is in it."""
    return next(kind for kind in REPORTS if (run_folder / kind.marker).is_file() or not kind.marker)
