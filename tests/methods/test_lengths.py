"""Length policies follow what was accepted; drafting that does not pay ends; the n-gram table knows neighbours."""

from itertools import islice

import pytest
import torch

from var_toolkit.methods.speculative.lengths import Account, Adaptive, Fixed, Record
from var_toolkit.methods.speculative.ngram import Table
from var_toolkit.methods.speculative.tally import Tally, together


def record(drafted, accepted):
    """A round of some images, of a proposer that takes a pass for each draft."""
    return Record(*(torch.tensor(numbers) for numbers in (drafted, accepted, drafted)))


def after(policy, window, drafted, accepted):
    """The window of an image after a round."""
    return int(policy.after(torch.tensor([window]), record([drafted], [accepted])))


def test_an_adaptive_window_grows_where_all_stood_and_shrinks_otherwise():
    policy, windows = Adaptive(8), [Adaptive(8).first]
    for stood in (True, True, True, False, False):
        windows.append(after(policy, windows[-1], windows[-1] - 1, windows[-1] - 1 if stood else 0))
    assert windows == [5, 7, 8, 8, 7, 6]
    assert after(Adaptive(8), 2, 1, 0) == 2
    assert Adaptive(1).first == after(Adaptive(1), 1, 0, 0) == 1


def test_a_fixed_window_stays():
    assert after(Fixed(6), Fixed(6).first, 5, 0) == 6
    assert str(Fixed(6, 0.25)) == "window 6, confidence 0.25"


@pytest.mark.parametrize(
    ("window", "confidence", "words"), [(0, 0, "draft_length is 0"), (4, 1.5, "confidence is 1.5")]
)
def test_lengths_out_of_range_are_refused(window, confidence, words):
    with pytest.raises(ValueError, match=words):
        Fixed(window, confidence)


def test_drafting_pays_if_it_settles_more_than_its_work_would_have():
    account = Account.of_images(2)  # the second is finished after the seventh round
    for _ in range(7):
        account.add(record([4, 4], [0, 0]))
    assert account.pays(0.5).all()  # too early to tell
    account.add(record([4, 0], [0, -1]))
    assert account.pays(0.5).tolist() == [False, True]  # 8 tokens for 8 + 16 passes' worth of work
    assert account.pays(0.0).all()
    for _ in range(8):
        account.add(record([4, 0], [4, -1]))
    assert account.pays(0.5).all()  # 48 tokens for 16 + 32
    assert account.decided.tolist() == [48, 7]


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
