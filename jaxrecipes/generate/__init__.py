"""Writing text with a decoder: the engine, sampling, answers to prompts, teachers."""

from jaxrecipes.generate.answers import Answer, render_prompt, write_answers
from jaxrecipes.generate.engine import Engine, generate
from jaxrecipes.generate.sampling import GREEDY, Sampling
from jaxrecipes.generate.tokens import TokenPrompt, Written

__all__ = [
    "GREEDY",
    "Answer",
    "Engine",
    "Sampling",
    "TokenPrompt",
    "Written",
    "generate",
    "render_prompt",
    "write_answers",
]
