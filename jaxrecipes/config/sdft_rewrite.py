"""Options of recipe sdft_rewrite: how supervised answers are rewritten before they are learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxrecipes.config.section import Section
from jaxrecipes.config.teacher import LocalTeacherSection, TeacherSection

# What an answer that speaks of its own making says; the phrases are our own words for what the
# paper's code looks for.
GIVEAWAYS = [
    "reference answer",
    "your response",
    "my response",
    "your own response",
    "your turn",
]


class SamplingSection(Section):
    """How tokens are drawn; the defaults are those that the paper's code decodes with."""

    temperature: float = Field(
        default=0.95, ge=0, le=10, description="Sampling temperature. 0: the likeliest token."
    )
    top_k: int = Field(default=50, ge=0, description="Only so many likeliest tokens. 0: all.")
    top_p: float = Field(
        default=0.7, gt=0, le=1, description="Only the likeliest tokens that make up this share."
    )
    max_new_tokens: int = Field(
        default=512,
        ge=1,
        le=65_536,
        description="Longest rewriting in tokens; one that does not end by then is not accepted.",
    )


class SemanticSection(Section):
    """A guard: a rewriting must mean about what the reference means."""

    encoder: str = Field(
        min_length=1,
        description="Sentence encoder: a folder, a hub id, package:NAME, or random:tiny-bert.",
    )
    least: float = Field(
        default=0.7, ge=-1, le=1, description="Least cosine of the two texts' embeddings."
    )


class SdftRewriteSection(Section):
    """Options of recipe sdft_rewrite: the seed model rewrites the answers that it then learns."""

    teacher: TeacherSection = Field(
        default_factory=lambda: LocalTeacherSection(kind="local"),
        description="Who rewrites. The method is the model itself, before it is trained; any "
        "other teacher makes it distillation.",
    )
    reference: Literal["shown", "hidden"] = Field(
        default="shown",
        description="shown: the teacher reads the right answer and says it in its own words. "
        "hidden: it answers by itself, and only what the verifiers accept is used (a control).",
    )
    wording: Literal["guide", "refer", "math"] = Field(
        default="guide",
        description="How it is asked. guide: the answer is a guide (open tasks). refer: refer to "
        "the answer (code, function calls). math: step by step, with the first words given "
        "(needs a teacher that goes on with a started turn).",
    )
    instruction: str | None = Field(
        default=None, min_length=1, description="Words of your own in place of the wording's."
    )
    opener: str | None = Field(
        default=None,
        description="First words of the teacher's turn, which are not part of the rewriting. null: "
        "the wording's.",
    )
    samples: int = Field(
        default=4, ge=1, le=256, description="Rewritings of each answer, of which the best is used."
    )
    sampling: SamplingSection = Field(
        default_factory=SamplingSection, description="How they are drawn."
    )
    task: Literal["open", "numeric", "exact", "function_call", "label"] = Field(
        default="open",
        description="What must be right in a rewriting. numeric: the number that it ends with. "
        "exact: the text, or its last line. function_call: the calls, all and none beside. label: "
        "the label and no other. open: nothing but the guards below.",
    )
    labels: list[str] = Field(default_factory=list, description="All labels, for task label.")
    giveaways: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=lambda: list(GIVEAWAYS),
        description="A rewriting with one of these phrases speaks of the request; not accepted.",
    )
    shortest: float = Field(
        default=0.2, ge=0, le=1, description="Least length, as a factor of the answer's."
    )
    longest: float = Field(
        default=4.0, ge=1, le=1000, description="Greatest length, likewise; 64 characters more."
    )
    semantic: SemanticSection | None = Field(
        default=None, description="A guard of meaning. null: none."
    )
    ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the examples whose rewriting is used where there is one; the others "
        "keep the original. A smaller share is a subset of a larger one.",
    )
    most_fallback: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Largest share of examples without an accepted rewriting. Above it the run "
        "stops: what would be trained is little but the original data.",
    )
    most_failed: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Largest share of requests that the teacher may leave unanswered. Above it the "
        "run stops, and the same command asks again for what is missing.",
    )


def sdft_conflicts(section: SdftRewriteSection, key: str) -> list[tuple[str, str]]:
    """Finds values that are right alone and wrong together.

    Args:
        section: The section.
        key: Where it is.

    Returns:
        Pairs (dotted key, what is wrong and what to do).
    """
    found = []
    if (section.task == "label") != bool(section.labels):
        message = "is read where task is label, and needed there; give both or neither"
        found.append((f"{key}.labels", message))
    if section.sampling.temperature == 0 and section.samples > 1:
        message = "temperature 0 writes the same text each time; set samples: 1 or draw"
        found.append((f"{key}.samples", message))
    if section.reference == "hidden":
        for name in ("wording", "instruction", "opener"):
            if name in section.model_fields_set:
                message = "is read where the reference is shown; remove it"
                found.append((f"{key}.{name}", message))
    return found
