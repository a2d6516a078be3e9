"""The memory of batches, which is used again once a batch was handed back.

New memory costs twice what is written into it, for the system clears its pages.
"""

import threading

import numpy as np
import torch
from torch import Tensor

# Bytes, a page. Images begin at multiples of 64 in their shards; a copy to a place that does not takes a third longer.
ALIGNED = 4096


class Pool:
    """Tensors of any number of shapes, for any number of threads. What nobody gives back is never lent again.

    pinned: whether the memory is page-locked, for copies to a GPU that run on while the caller goes on. Such memory is
    torch's own pool's, which knows when a copy is done; it is not kept here.
    """

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._free: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with any contents, at the beginning of a page."""
        if self.pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        with self._lock:
            if free := self._free.get((shape, dtype)):
                return free.pop()
        return _new(shape, dtype)

    def give_back(self, tensor: Tensor) -> None:
        """Have a tensor that `take` returned lent again; whoever took it neither reads nor writes it any more."""
        if not self.pinned:
            with self._lock:
                self._free.setdefault((tuple(tensor.shape), tensor.dtype), []).append(tensor)


class Loan:
    """Tensors of a pool that several batches share. They return to it when the last of these was handed back."""

    def __init__(self, pool: Pool, batches: int) -> None:
        self._pool, self._left = pool, batches
        self._tensors: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As Pool.take."""
        self._tensors.append(self._pool.take(shape, dtype))
        return self._tensors[-1]

    def end_one(self) -> None:
        """Count one of the batches as handed back."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
        for tensor in self._tensors:
            self._pool.give_back(tensor)


class Batch(dict[str, Tensor]):
    """A batch's tensors by name, as `Loader.cut` has them. Their memory is the caller's until it is handed back."""

    def __init__(self, tensors: dict[str, Tensor], loan: Loan) -> None:
        super().__init__(tensors)
        self._loan: Loan | None = loan

    def hand_back(self) -> None:
        """Let other batches have the memory, which may overwrite it at once; this one is empty afterwards.

        It is for whoever has used the batch, and has kept no view of its images. What `Loader.to_device` made of it is no
        view, and a batch that is never handed back is never overwritten. A second call does nothing.
        """
        self.clear()
        loan, self._loan = self._loan, None
        if loan is not None:
            loan.end_one()


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    # numpy asks the system for huge pages, which torch does not
    memory = torch.from_numpy(np.empty(size + ALIGNED, np.uint8))
    start = -memory.data_ptr() % ALIGNED
    return memory[start : start + size].view(dtype).view(shape)
