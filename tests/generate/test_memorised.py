from hypothesis import given
from hypothesis import strategies as st

from jaxrecipes.generate.memorised import Shown, same_text

words = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=1)


def test_shares_by_hand():
    shown = Shown(["The cat sat on the mat today.", "Short one"], words=3)
    assert shown.copied_share("the CAT, sat on!") == 1.0
    # "a cat sat", "cat sat on", "sat on a": one of three.
    assert shown.copied_share("A cat sat on a") == 1 / 3
    assert shown.copied_share("entirely different words here") == 0.0
    # Shorter than a run: as a whole, and not as letters inside of words.
    assert shown.copied_share("short one") == 1.0
    assert shown.copied_share("at on") == 0.0
    assert shown.copied_share("?!") == 0.0


@given(st.lists(words, min_size=1, max_size=4), st.integers(1, 5))
def test_what_was_shown_is_copied_whole(texts, length):
    shown = Shown([" ".join(text) for text in texts], words=length)
    for text in texts:
        other = "  ".join(text).upper() + "."
        assert shown.equals(other)
        assert shown.copied_share(other) == 1.0


@given(words, words, st.integers(1, 4))
def test_the_share_counts_runs(text, other, length):
    share = Shown([" ".join(other)], words=length).copied_share(" ".join(text))
    runs = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
    found = {tuple(other[i : i + length]) for i in range(len(other) - length + 1)}
    if runs:
        assert share == sum(run in found for run in runs) / len(runs)


def test_case_and_blanks_do_not_make_a_text_new():
    assert same_text(" The  Cat\nsat ") == same_text("the cat SAT")
    assert same_text("the cat") != same_text("the cat.")
