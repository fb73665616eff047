"""Measuring what a model knows: likelihood, divergence from the base, choices, forgetting."""

from jaxrecipes.evaluate.bootstrap import Interval, difference_interval, ratio_interval
from jaxrecipes.evaluate.choices import (
    ChoiceScores,
    choice_scores,
    encode_choices,
    encode_last_words,
    last_word_scores,
    read_choice_items,
    read_last_word_items,
)
from jaxrecipes.evaluate.frontier import Curve, curve_from_records, equal_learning
from jaxrecipes.evaluate.likelihood import BaseCache, DocumentSums, base_cache, evaluate_set
from jaxrecipes.evaluate.record import EvaluationSuite, build_suite, evaluate_arm, read_records
from jaxrecipes.evaluate.rows import EvaluationRows, pack_scored, rows_from_prepared
from jaxrecipes.evaluate.token_bytes import token_byte_lengths

__all__ = [
    "BaseCache",
    "ChoiceScores",
    "Curve",
    "DocumentSums",
    "EvaluationRows",
    "EvaluationSuite",
    "Interval",
    "base_cache",
    "build_suite",
    "choice_scores",
    "curve_from_records",
    "difference_interval",
    "encode_choices",
    "encode_last_words",
    "equal_learning",
    "evaluate_arm",
    "evaluate_set",
    "last_word_scores",
    "pack_scored",
    "ratio_interval",
    "read_choice_items",
    "read_last_word_items",
    "read_records",
    "rows_from_prepared",
    "token_byte_lengths",
]
