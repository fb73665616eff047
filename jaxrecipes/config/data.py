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
RowShape = Literal[
    "auto",
    "documents",
    "prompt_completion",
    "chat",
    "alpaca",
    "sharegpt",
    "classification",
    "sentence_pair",
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
    messages: str | None = Field(
        default=None,
        description="chat: list of messages with role and content. null: messages.",
    )
    conversations: str | None = Field(
        default=None,
        description="sharegpt: list of turns with from and value. null: conversations.",
    )
    tools: str | None = Field(
        default=None,
        description="chat, sharegpt, prompt_completion: JSON schemas of tools, may be missing. "
        "null: tools.",
    )
    prompt: str | None = Field(
        default=None,
        description="prompt_completion: text, or a list of messages. null: prompt.",
    )
    completion: str | None = Field(
        default=None,
        description="prompt_completion: text, or a list of messages. null: completion.",
    )
    instruction: str | None = Field(
        default=None, description="alpaca: what is asked. null: instruction."
    )
    input: str | None = Field(
        default=None,
        description="alpaca: what it is asked about, may be missing or empty. null: input.",
    )
    output: str | None = Field(default=None, description="alpaca: the answer. null: output.")
    system: str | None = Field(
        default=None,
        description="alpaca, sharegpt: the system's turn, may be missing or empty. null: system.",
    )
    second_text: str | None = Field(
        default=None,
        description="sentence_pair: the second text. null: sentence2, hypothesis or text2.",
    )
    label: str | None = Field(
        default=None,
        description="classification, sentence_pair: the label, a text or a whole number. "
        "null: label.",
    )


class SourceSection(Section):
    """One source of documents or of supervised examples."""

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
    shape: RowShape = Field(
        default="auto",
        description="What a row is. documents: text, all of it learned. The others are supervised, "
        "only the answers are learned: prompt_completion (two texts, joined as they are), chat, "
        "alpaca and sharegpt (rendered with the chat template), classification and sentence_pair "
        "(texts as the user's turn, label as the assistant's). auto: found from the columns; a "
        "table with a text column holds documents, with or without labels. Of docstrings, chat "
        "asks what a name is.",
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
    """One source to learn from."""

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


class SuperviseSection(Section):
    """How supervised examples are rendered, masked and fitted into rows."""

    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="A Jinja file, or the template itself. It replaces the tokenizer's, for "
        "training, for every prompt of this run, and in the exported model. null: the tokenizer's.",
    )
    turns: Literal["all", "last"] = Field(
        default="all", description="Which of the assistant's turns are learned."
    )
    overlong: Literal["error", "drop", "truncate_left", "truncate_right"] = Field(
        default="error",
        description="What happens to an example of more than `length` tokens. truncate_left keeps "
        "its end, truncate_right its beginning; one that would lose all its supervised tokens is "
        "dropped. What was cut or dropped is counted and named.",
    )


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
        default="split",
        description="What happens to a document of more than `length` tokens. Supervised examples "
        "follow supervise.overlong.",
    )
    supervise: SuperviseSection = Field(
        default_factory=SuperviseSection, description="For sources of supervised examples."
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
