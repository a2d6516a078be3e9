"""The order of an epoch: a seeded permutation that is computed, not stored."""

import numpy as np

from pipeline.keyed import digest64, mixed

ROUNDS = 6


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """The positions of `index` (int64, each in 0..n-1) under a keyed permutation of range(n); O(1) memory.

    A balanced Feistel network over the smallest even number of bits that holds n, walked along its cycle until it is
    back inside range(n); the domain is under 4n, so that takes four steps on average at the most.
    """
    if n <= 1:
        return np.zeros_like(index)
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = [np.uint64(digest64("feistel", key, r)) for r in range(ROUNDS)]
    result = index.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        value = result[walking]
        left, right = value >> shift, value & mask
        for k in keys:
            left, right = right, left ^ (mixed(right ^ k) & mask)
        value = (left << shift) | right
        result[walking] = value
        walking = walking[value >= np.uint64(n)]
    return result.astype(np.int64)


class Order:
    """Samples in two levels: shards in a shuffled order, cut into windows, and the samples shuffled inside each window.

    A reader of consecutive positions touches one window's shards at a time. Memory is O(shards), not O(samples).
    samples_per_shard: how many samples each shard holds, in the order of the index; a sample's number counts through them.
    """

    def __init__(self, samples_per_shard: np.ndarray, *, window: int, seed: int, epoch: int) -> None:
        shards = len(samples_per_shard)
        self.start = np.concatenate(([0], np.cumsum(samples_per_shard)))  # where each shard starts, in sample numbers
        self.shard_order = permute(np.arange(shards), shards, digest64("shards", seed, epoch))
        sizes = samples_per_shard[self.shard_order]
        self.position = np.concatenate(([0], np.cumsum(sizes)))  # where each shard starts, in the epoch's positions
        self.window_first = np.arange(0, shards, window)  # shard that opens each window
        self.window_start = self.position[np.append(self.window_first, shards)]
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return int(self.position[-1])

    def samples(self, positions: np.ndarray) -> np.ndarray:
        """The sample numbers at these positions (int64) of the epoch."""
        result = np.empty_like(positions)
        windows = np.searchsorted(self.window_start, positions, side="right") - 1
        for window in np.unique(windows):
            chosen = windows == window
            first, stop = self.window_start[window], self.window_start[window + 1]
            key = digest64("window", self.seed, self.epoch, int(window))
            shuffled = first + permute(positions[chosen] - first, int(stop - first), key)
            shard = np.searchsorted(self.position, shuffled, side="right") - 1
            result[chosen] = self.start[self.shard_order[shard]] + shuffled - self.position[shard]
        return result
