"""The keys of a config's schema, for tests that every one of them is read."""

from __future__ import annotations

from jaxrecipes.config.problems import section_types
from jaxrecipes.config.section import Section


def schema_keys(section: type[Section]) -> set[tuple[str, str]]:
    """All (section class, key) below a section, its own included."""
    found = set()
    for name, field in section.model_fields.items():
        found.add((section.__name__, name))
        for inner in section_types(field.annotation):
            found |= schema_keys(inner)
    return found
