"""Pauses between tries."""

from itertools import islice

from pipeline.patience import Pauses


def test_pauses_double_from_the_first_to_the_longest_and_progress_begins_them_anew():
    pauses = Pauses(0.5, 3)
    assert list(islice(pauses, 5)) == [0.5, 1, 2, 3, 3]
    pauses.begin_again()
    assert list(islice(pauses, 2)) == [0.5, 1]
    assert list(islice(Pauses(1, 10), 2000))[-1] == 10
