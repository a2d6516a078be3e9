"""One shard: the samples of its groups, their planes and negatives, as members of a tar."""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.degradations.base import Plane, turned_name
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.depth import Bits, widened
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, decode_image, source_image
from pipeline.raw.sources import fetched_file, is_remote, local_file, read_source
from pipeline.sampling.negatives import Negative, mixed_image, negatives
from pipeline.shards.format import (
    Member,
    json_member,
    npy_member,
    png_member,
)
from pipeline.shards.plan import File, Group
from pipeline.task import Task


class UnusableImagesError(Exception):
    """Images that cannot be used. images: (path, reason) of each."""

    def __init__(self, images: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {reason}" for path, reason in images))
        self.images = images


def samples(groups: list[Group], task: Task, views: Sequence[int] = (0,)) -> Iterator[tuple[str, list[Member]]]:
    """The samples of one shard: (key, members) of each group. views: those of each clean image that are degraded.

    Raises UnusableImagesError, which lists all such files of the shard, for files that changed since they were ingested
    or that the degradation does not take.
    """
    stored = task.negatives if task.negatives is not None and task.negatives.kept == "stored" else None
    partners: dict[str, list[Negative]] = {}
    for negative in shard_negatives(groups, task) if stored else ():
        partners.setdefault(negative.key, []).append(negative)
    by_key = {group.key: group for group in groups}
    failures: list[tuple[str, str]] = []
    for group in groups:
        try:
            planes = sample_planes(group, task, views)
            if stored:
                planes += _negative_planes(group.key, planes, partners.get(group.key, []), by_key, task, views)
        except UnusableImagesError as error:
            failures += error.images
        if not failures:  # after a failure, the others are read only to list all that fail
            suffix, member = ("png", png_member) if task.codec == "png" else ("npy", npy_member)
            members = [member(f"{p.name}.{suffix}", p.pixels, role=p.role, **p.columns) for p in planes]
            origin = {"sources": {file.name: file.sha256 for file in group.files}, "colour": task.colour}
            yield group.key, [*members, json_member(origin)]
    if failures:
        raise UnusableImagesError(failures)


def sample_planes(group: Group, task: Task, views: Sequence[int] = (0,)) -> list[Plane]:
    """The planes of a group's images, and what the task makes of them. views: as in `samples`. Raises UnusableImagesError."""
    planes: list[Plane] = []
    failures = []
    for file in group.files:
        try:
            image = task.degradation.opened(_ingested(file, task.bits))
            mask = file.name.startswith("mask")
            if task.colour == "y" and not mask:
                image = rgb2ycbcr_y(image)
            elif task.colour != "rgb" or mask:
                image = rgb2gray(image)
            planes += task.degradation.planes(file.name, image, group.key, planes, views)
        except UnusableImageError as error:
            failures.append((file.path, str(error)))
    if failures:
        raise UnusableImagesError(failures)
    return task.degradation.sample(planes)


def shard_negatives(groups: list[Group], task: Task) -> Iterator[Negative]:
    """The negatives of one shard's samples."""
    assert task.negatives is not None
    degraded = [
        (group.key, level) for group in groups for level in task.degradation.inputs([file.name for file in group.files])
    ]
    return negatives(degraded, task.negatives)


def _negative_planes(
    key: str,
    planes: list[Plane],
    planned: list[Negative],
    groups: dict[str, Group],
    task: Task,
    views: Sequence[int],
) -> list[Plane]:
    """Mixed and extra negatives as members. groups: the shard's groups by key, to make the partners of extra negatives."""
    gt = next(plane.pixels for plane in planes if plane.role == "gt")
    made = {key: _inputs(planes)}
    extra = task.negatives is not None and task.negatives.kind == "extra"  # other inputs, as they are
    found = []
    for n in planned:
        if n.partner not in made:
            made[n.partner] = _inputs(sample_planes(groups[n.partner], task, views))
        parameters = json.dumps({"permille": n.permille, "of": n.partner})
        columns = {"level": n.level, "parameters": parameters}
        for view in views:
            lq = made[n.partner][turned_name("lq", "", view)[1], n.partner_level]
            pixels = lq if extra else mixed_image(lq, gt[: lq.shape[0], : lq.shape[1]], n.permille)
            found.append(Plane(*turned_name("negative", f"negative-{n.level}-{n.k}", view), pixels, columns))
    return found


def _inputs(planes: list[Plane]) -> dict[tuple[str, int], np.ndarray]:
    """The degraded images of a sample, by role and level."""
    return {(plane.role, plane.columns["level"]): plane.pixels for plane in planes if plane.role.startswith("lq")}


def _ingested(file: File, bits: Bits) -> np.ndarray:
    """The pixels of an image, if it has not changed since `ingest`; for a whole file its bytes are compared, which is faster.

    Raises UnusableImageError, also for an image with more bits.
    """
    try:
        if file.part is not None:
            image, sha256 = source_image(fetched_file(file.path), file.part, bits=bits)
        else:
            image, sha256 = None, ""
            if is_remote(file.path) and local_file(file.path).is_file():  # a copy, perhaps of an older object
                data = local_file(file.path).read_bytes()
                sha256 = hashlib.sha256(data).hexdigest()
            if sha256 != file.sha256:
                data = read_source(file.path)
                sha256 = hashlib.sha256(data).hexdigest()
            image = decode_image(data, bits=bits) if sha256 == file.sha256 else None
    except UserError as error:  # the bucket's error
        raise UnusableImageError(f"cannot be read: {error}") from None
    except OSError as error:
        raise UnusableImageError(f"{error.strerror}; run `memoir ingest` again") from None
    if sha256 != file.sha256 or image is None:
        raise UnusableImageError("changed since it was ingested; run `memoir ingest` again")
    return widened(image, bits)
