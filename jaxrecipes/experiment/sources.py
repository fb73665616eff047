"""From the config's sources to those of the data room."""

from __future__ import annotations

from jaxrecipes.config.data import SourceSection, SuperviseSection
from jaxrecipes.data.sources import SourceSpec
from jaxrecipes.data.tokenize_examples import Supervision


def source_spec(section: SourceSection) -> SourceSpec:
    """Translates a section of the config."""
    return SourceSpec(
        reference=section.source,
        kind=None if section.format == "auto" else section.format,
        columns=section.columns.model_dump(exclude_none=True),
        split=section.split,
        subset=section.subset,
        unit=section.unit,
    )


def supervision(section: SourceSection, supervise: SuperviseSection) -> Supervision:
    """Translates what the config says of supervised examples, for one source."""
    return Supervision(
        shape=None if section.shape == "auto" else section.shape,
        turns=supervise.turns,
        overlong=supervise.overlong,
    )


def smaller(*limits: int | None) -> int | None:
    """Returns the smallest limit that is given; None where none is."""
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else None
