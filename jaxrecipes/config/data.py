"""The sections of the learn set and the keep set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxrecipes.config.section import Section

SourceFormat = Literal[
    "auto",
    "text",
    "jsonl",
    "csv",
    "parquet",
    "saved_dataset",
    "hub",
    "tfds",
    "docstrings",
    "topics",
]


class ColumnsSection(Section):
    """Which column of a source plays which role."""

    text: str | list[str] | None = Field(
        default=None,
        description="Column with the text, or several, joined by an empty line. null: text.",
    )
    id: str | None = Field(
        default=None,
        description="Column that names a document. null: id where there is one, else the row.",
    )
    group: str | None = Field(
        default=None,
        description="Column whose equal values stay on one side of the held-out split.",
    )


class SourceSection(Section):
    """One source of documents."""

    source: str = Field(
        min_length=1,
        description="A file, a folder, a glob, hub:<dataset>, tfds:<name>, "
        "docstrings:<package>,<package> (public docstrings of installed Python packages) or topics "
        "(the language reference that Python ships).",
    )
    format: SourceFormat = Field(
        default="auto", description="How to read it. auto: found by looking."
    )
    columns: ColumnsSection = Field(
        default_factory=ColumnsSection,
        description="Inline column mapping, for example {text: body, id: key}.",
    )
    split: str = Field(default="train", description="Split of a hub, TFDS or saved dataset.")
    subset: str | None = Field(default=None, description="Configuration name of a hub dataset.")
    unit: Literal["file", "line", "paragraph"] = Field(
        default="file", description="What one document of a text file is."
    )
    limit_documents: int | None = Field(
        default=None, ge=1, description="Read at most this many documents. null: all."
    )


class LearnSection(SourceSection):
    """One source of documents to learn."""

    weight: float = Field(
        default=1.0,
        gt=0,
        description="Share of rows in the mixture, relative to the other sources.",
    )


class OwnAnswers(Section):
    """A keep set that the base model writes itself, before training."""

    kind: Literal["own_answers"] = Field(
        default="own_answers",
        description="Answers of the base model to general prompts, made once.",
    )
    prompts: str = Field(
        default="builtin",
        min_length=1,
        description="builtin: the general prompts that jaxrecipes ships. Or a JSONL file with a "
        "prompt field, or a text file with one prompt a line.",
    )
    limit_prompts: int | None = Field(
        default=None, ge=2, description="Use the first so many prompts. null: all."
    )
    max_new_tokens: int = Field(
        default=64, ge=1, le=65536, description="Longest answer, in tokens."
    )
    temperature: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="Sampling temperature of the answers. 0: the likeliest token.",
    )


class KeepDocuments(Section):
    """A keep set of given documents. They are never trained on."""

    kind: Literal["documents"] = Field(description="Documents of the sources below.")
    sources: list[SourceSection] = Field(min_length=1, description="Where they come from.")


class DataSection(Section):
    """What to learn and what to keep."""

    length: int = Field(
        default=1024,
        ge=8,
        le=1_048_576,
        description="Tokens a row; documents are packed into rows.",
    )
    attend: Literal["document", "context"] = Field(
        default="document",
        description="What a token may see: its own document, or all earlier tokens of its row.",
    )
    overlong: Literal["error", "drop", "truncate", "split"] = Field(
        default="split", description="What happens to a document of more than `length` tokens."
    )
    held_out: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share of the learn documents that is never trained on, to measure learning.",
    )
    learn: list[LearnSection] = Field(min_length=1, description="Sources of the learn set.")
    keep: Annotated[OwnAnswers | KeepDocuments, Field(discriminator="kind")] = Field(
        default_factory=OwnAnswers, description="The keep set, on which forgetting is measured."
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_kind(cls, value: Any) -> Any:
        # `keep: {max_new_tokens: 32}` means own answers, as the default does.
        if isinstance(value, dict) and isinstance(value.get("keep"), dict):
            kind = "documents" if "sources" in value["keep"] else "own_answers"
            return {**value, "keep": {"kind": kind, **value["keep"]}}
        return value
