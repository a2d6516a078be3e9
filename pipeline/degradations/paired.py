"""The degraded images that a data set itself pairs with its targets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from pipeline.degradations.base import Degradation
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def numbers(names: Sequence[str]) -> list[int]:
    """The levels of published inputs, which are their numbers. names: the names of a sample's members, such as lq-0."""
    parts = [name.partition("-") for name in names]
    return [int(number) for role, _, number in parts if role == "lq"]


class Paired(Degradation):
    """The degraded images that the data set itself pairs with its targets."""

    kind: Literal["paired"]

    roles: ClassVar[tuple[str, ...]] = ("gt", "lq", "mask")
    grouped: ClassVar[bool] = True
    images: ClassVar[str] = "pairs"
    level_text: ClassVar[str] = "input {}"

    def lost(self, manifest: "pa.Table", rows: np.ndarray, deep: np.ndarray) -> np.ndarray:
        """As Degradation.lost: an input goes with its mask, a target with its last input, and all go with their target."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not deep.any():
            return deep
        taken = manifest.select(["role", "group", "key"]).take(pa.array(rows))
        group, key = (taken[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("group", "key"))
        gt, lq = (pc.equal(taken["role"], role).to_numpy() for role in ("gt", "lq"))
        each = group.astype(np.int64) * (key.max() + 1) + key
        lost = deep | (~gt & np.isin(each, each[deep & ~gt])) | np.isin(group, group[deep & gt])
        return lost | ~np.isin(group, group[lq & ~lost])

    def names(self, manifest: "pa.Table", rows: np.ndarray, first: np.ndarray) -> list[str] | None:
        """As Degradation.names: gt, lq-<n> or mask-<n>, where n counts the inputs of a target."""
        import pyarrow as pa

        taken = manifest.select(["role", "key"]).take(pa.array(rows))
        roles = taken["role"].to_pylist()
        for role, lacking in (("lq", "input"), ("gt", "target")):
            without = np.flatnonzero(np.add.reduceat((np.array(roles) == role).astype(np.int64), first) == 0)
            if len(without):
                path = manifest["path"][int(rows[first[without[0]]])].as_py()
                raise UserError(f"{path}: has no {lacking}, and the task is of pairs; leave its split out")
        number: dict[str, int] = {}  # of one group's inputs, by key; they stand before its masks
        names = []
        for role, key in zip(roles, taken["key"].to_pylist(), strict=True):
            if role == "gt":
                number = {}
                names.append("gt")
            else:
                names.append(f"{role}-{number.setdefault(key, len(number))}")
        return names

    def inputs(self, names: Sequence[str]) -> list[int]:
        """As Degradation.inputs."""
        return numbers(names)
