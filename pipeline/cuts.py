"""Content-defined cuts: where a long list is cut into parts, so that an edit changes the parts near it and no others."""

from collections.abc import Sequence

PART = 2048  # images that a part of a table describes on average: half a megabyte of the index, less of the manifest


def minima(hashes: Sequence[int], ends: Sequence[int], window: int) -> list[int]:
    """The last items of parts: those with the least hash within `window` to either side.

    Such local minima are at least a window apart, and each depends on nothing that is further away than a window: an
    edit in one place changes at most three parts. No minimum is nearer to an end of the list than a window, and the
    minima of a wider window are some of those of a narrower one.
    hashes: one for each item. ends: ascending, where each item ends, in the unit of `window`. With a window of half an
    average part, parts have that average.
    """
    found: list[int] = []
    rising: list[tuple[int, bool]] = []  # ascending hashes, and whether no lower one lies within the window before
    for i, value in enumerate(hashes):
        while rising and hashes[rising[-1][0]] > value:
            j, lowest = rising.pop()
            if lowest and ends[i] - ends[j] >= window:
                found.append(j)
        rising.append((i, ends[i] - (ends[rising[-1][0]] if rising else 0) >= window))
    found += [j for j, lowest in rising if lowest and ends[-1] - ends[j] >= window]
    return sorted(found)
