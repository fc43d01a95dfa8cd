"""Length policies follow what was accepted; drafting that does not pay ends; the n-gram table knows neighbours."""

from itertools import islice

import pytest

from var_toolkit.methods.speculative.lengths import Account, Adaptive, Fixed, Record
from var_toolkit.methods.speculative.ngram import Table
from var_toolkit.methods.speculative.tally import Tally, together


def test_an_adaptive_window_grows_where_all_stood_and_shrinks_otherwise():
    policy, windows = Adaptive(8), [Adaptive(8).first]
    for stood in (True, True, True, False, False):
        windows.append(policy.after(windows[-1], Record(windows[-1] - 1, windows[-1] - 1 if stood else 0, 1)))
    assert windows == [5, 7, 8, 8, 7, 6]
    assert Adaptive(8).after(2, Record(1, 0, 1)) == 2
    assert Adaptive(1).first == Adaptive(1).after(1, Record(0, 0, 0)) == 1


def test_a_fixed_window_stays():
    assert Fixed(6).after(Fixed(6).first, Record(5, 0, 5)) == 6
    assert str(Fixed(6, 0.25)) == "window 6, confidence 0.25"


@pytest.mark.parametrize(
    ("window", "confidence", "words"), [(0, 0, "draft_length is 0"), (4, 1.5, "confidence is 1.5")]
)
def test_lengths_out_of_range_are_refused(window, confidence, words):
    with pytest.raises(ValueError, match=words):
        Fixed(window, confidence)


def test_drafting_pays_if_it_settles_more_than_its_work_would_have():
    account = Account()
    for _ in range(7):
        account.add(Record(4, 0, 4))
    assert account.pays(0.5)  # too early to tell
    account.add(Record(4, 0, 4))
    assert not account.pays(0.5)  # 8 tokens for 8 + 16 passes' worth of work
    assert account.pays(0.0)
    for _ in range(8):
        account.add(Record(4, 4, 4))
    assert account.pays(0.5)  # 48 tokens for 16 + 32


def test_the_table_guesses_what_followed_both_neighbours_first():
    table = Table(side=3, vocabulary=6)
    for token in (1, 2, 3, 4, 5, 3, 4, 2):
        table.add(token)
    # Above the next place is the last 3 of the second row, to its left the 2: after a 2 came a 3, below a 3 a 3.
    assert list(islice(table.guesses(2, 8), 3)) == [3, 2, 0]
    assert sorted(table.guesses(2, 8)) == list(range(6))  # every token once, however many are asked for


def test_tallies_of_batches_add_up():
    one = Tally(images=2, target_passes=6, decided=18, drafted=20, forward_passes=4, cache_bytes=5)
    one.accepted_counts.update({0: 2, 6: 2})
    one.paces = [[1, 7, 1], [1, 1, 7]]
    whole = together([one, one])
    assert whole is not None
    assert (whole.images, whole.decided, whole.accepted, whole.cache_bytes) == (4, 36, 24, 5)
    assert whole.as_json()["tokens_per_pass"] == 3
    assert whole.paces == [*one.paces, *one.paces]
    assert whole.as_json()["accepted_histogram"] == {"0": 4, "6": 4}
    assert together([]) is None
