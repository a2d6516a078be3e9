from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from pipeline.layouts.base import SPLITS, Layout, Row, reject_same_key
from pipeline.layouts.files import files_under, natural, safe_key, unusable


class Scenes(Layout):
    """Time-lapse scenes of a static camera, without clean images: {train,val,test}/<scene>/<frame>.png, role frame.

    Frames are in natural order (frame2 before frame10) and numbered from 0; the scene is the group. A scene with fewer
    than two usable frames is rejected: it has no pair. What lies beside the splits is a reject, text files apart.
    """

    name = "scenes"
    tree = "{train,val,test}/<scene>/*.png"

    def scan(self) -> Iterator[Row]:
        splits = self.split_folders()
        yield from self.beside("train", "frame", self.root, SPLITS)
        for split in splits:
            folder, found = self.root / split, []
            for path in files_under(folder):
                parts = path.relative_to(folder).parts
                reason = unusable(path) if len(parts) == 2 else "not directly in the folder of a scene"
                if reason:
                    yield self.reject(split, "frame", path, reason)
                else:
                    key = safe_key(f"{parts[0]}-{path.stem}")
                    found.append(self.row(split, "frame", path, key, scene=safe_key(parts[0])))
            scenes = defaultdict(list)
            for row in reject_same_key(found, self.root):
                scenes[row.path.parent.name].append(row)
            for scene in sorted(scenes, key=natural):
                yield from numbered(sorted(scenes[scene], key=lambda row: natural(row.path.name)))


def numbered(rows: list[Row]) -> Iterator[Row]:
    """The rows of one scene in their order, the usable frames numbered from 0, or all rejected if fewer than two."""
    usable = sum(row.reject_reason is None for row in rows)
    frame = 0
    for row in rows:
        if row.reject_reason is not None:
            yield row
        elif usable < 2:
            yield replace(row, reject_reason="the only usable frame of its scene; a pair needs two")
        else:
            yield replace(row, frame=frame)
            frame += 1
