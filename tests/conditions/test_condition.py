"""A condition has rows that can be sliced, and a null twin with the same parts."""

import pytest
import torch

from var_toolkit.conditions.condition import Condition, Request, labels_of, of_labels


def whole(rows: int, value: float = 1.0) -> Condition:
    return Condition(
        labels=torch.arange(rows),
        pooled=torch.full((rows, 4), value),
        prefix=torch.full((rows, 3, 4), value),
        cross=torch.full((rows, 3, 2, 2, 5, 4), value),
        cross_mask=torch.ones(rows, 5, dtype=torch.bool),
        additions={0: torch.full((rows, 2, 4), value), 7: torch.full((rows, 2, 4), value)},
    )


def test_every_part_is_doubled_with_its_null_twin_and_sliced_again():
    request = Request(whole(2), whole(2, 0.0))
    both = request.rows(None, 2)
    assert len(both) == 4
    assert both.prefix[:, 0, 0].tolist() == both.additions[7][:, 0, 0].tolist() == [1, 1, 0, 0]
    assert both.cross_mask.shape == (4, 5)
    own = both.of_rows(slice(2))
    for name in ("labels", "pooled", "prefix", "cross", "cross_mask"):
        assert torch.equal(getattr(own, name), getattr(request.rows(None, 1), name))
    assert own.additions.keys() == {0, 7}
    assert both.of_rows(torch.tensor([1, 3])).labels.tolist() == [1, 1]


def test_parts_that_are_absent_stay_absent():
    request = of_labels(torch.tensor([3, 5]), 10)
    assert request.rows(None, 2).labels.tolist() == [3, 5, 10, 10]
    assert request.rows(None, 2).prefix is None
    assert len(request) == 2


def test_a_twin_with_other_parts_is_refused():
    with pytest.raises(ValueError, match="one lacks pooled"):
        Condition(labels=torch.arange(2), pooled=torch.zeros(2, 4)).with_null(Condition(labels=torch.arange(2)))


def test_a_network_of_classes_refuses_what_it_does_not_read(small_var):
    with pytest.raises(ValueError, match="VAR takes class labels as its condition; it was given labels, prefix"):
        small_var.condition(Condition(labels=torch.arange(2), prefix=torch.zeros(2, 3, 4)))
    with pytest.raises(ValueError, match="it was given cross"):
        labels_of(Condition(cross=torch.zeros(2, 3, 4)), "VAR")
