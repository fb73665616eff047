"""ROUGE-L against the packages that papers use, and against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.evaluate.rouge import Rouge, lcs_length, rouge_l, rouge_l_jieba

WORDS = st.sampled_from(
    ["the", "cats", "Running", "ran", "it's", "3", "42.5", "é", "。", "?", "x\n"]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=12).map(" ".join))
# Values of rouge_score 0.1.2 and of rouge_chinese 1.0.3 over jieba 0.42.1.
GOLDEN = [
    ("The cat sat on the mat.", "the cat is on the mat", 0.8333333333, 0.6153846104),
    ("A b c", "c b a", 0.3333333333, 0.3333333283),
    ("我喜欢北京烤鸭。", "我爱北京烤鸭。", 0.0, 0.7499999950),
    ("", "nothing", 0.0, 0.0),
]


@pytest.mark.parametrize(("said", "wanted", "google", "jieba"), GOLDEN)
def test_golden_values(said, wanted, google, jieba):
    assert rouge_l(said, wanted).f1 == pytest.approx(google, abs=1e-9)
    pytest.importorskip("jieba")
    assert rouge_l_jieba(said, wanted).f1 == pytest.approx(jieba, abs=1e-9)


@settings(deadline=None)  # the first comparison imports the package
@given(TEXTS, TEXTS)
def test_google_variant_is_rouge_score(said: str, wanted: str):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    porter = pytest.importorskip("nltk.stem.porter").PorterStemmer()
    for stemmed in (False, True):
        theirs = scorer.RougeScorer(["rougeL"], use_stemmer=stemmed).score(wanted, said)["rougeL"]
        ours = rouge_l(said, wanted, stem=porter.stem if stemmed else None)
        assert (ours.precision, ours.recall) == (theirs.precision, theirs.recall)
        assert ours.f1 == pytest.approx(theirs.fmeasure)


@settings(deadline=None)  # the first comparison imports the package
@given(TEXTS, TEXTS)
def test_jieba_variant_is_rouge_chinese(said: str, wanted: str):
    jieba = pytest.importorskip("jieba")
    rouge = pytest.importorskip("rouge_chinese").Rouge()
    ours = rouge_l_jieba(said, wanted)
    texts = [" ".join(jieba.cut(text)) for text in (said, wanted)]
    if not all(text.split() for text in texts):  # theirs cannot: LLaMA-Factory's code says 0
        assert ours == Rouge(0.0, 0.0, 0.0)
        return
    theirs = rouge.get_scores(*texts)[0]["rouge-l"]
    assert (ours.precision, ours.recall, ours.f1) == (theirs["p"], theirs["r"], theirs["f"])


def test_the_two_variants_are_different_numbers():
    pytest.importorskip("jieba")
    said, wanted = "The answer: Paris!", "the answer: paris!"
    assert rouge_l(said, wanted).f1 == 1.0
    assert rouge_l_jieba(said, wanted).f1 < 0.7


@given(st.lists(st.integers(0, 3), max_size=7), st.lists(st.integers(0, 3), max_size=7))
def test_longest_common_subsequence_is_that_of_brute_force(first: list[int], second: list[int]):
    def subsequences(items: list[int]) -> set[tuple[int, ...]]:
        sizes = range(len(items) + 1)
        return {found for size in sizes for found in itertools.combinations(items, size)}

    expected = max(map(len, subsequences(first) & subsequences(second)))
    assert lcs_length(first, second) == lcs_length(second, first) == expected
