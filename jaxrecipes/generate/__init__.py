"""Writing text with a decoder: sampling, decoding with a key-value cache, answers to prompts."""

from jaxrecipes.generate.answers import Answer, render_prompt, write_answers
from jaxrecipes.generate.decode import generate
from jaxrecipes.generate.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Answer", "Sampling", "generate", "render_prompt", "write_answers"]
