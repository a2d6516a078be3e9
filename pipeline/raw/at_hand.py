"""Raw data that DVC tracks, in the copy in which it runs an experiment."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.params import below_experiments
from pipeline.raw.sources import is_remote


def check_out(roots: Iterable[str]) -> None:
    """In the copy of an experiment: bring folders that are not there, and that DVC tracks, from its cache into the copy.

    DVC does so itself, unless it is told which stages to run: no stage depends on the raw data, which may lie anywhere. What
    the cache has nothing of stays away. roots: folders and URIs. Raises UserError for a folder of which the cache has a part, since
    that is another data set, and for files of DVC that DVC cannot read.
    """
    wanted = [Path(root).absolute() for root in roots if not is_remote(root)]
    if below_experiments() is None:
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            for stage in [stage for stage in repo.index.stages if stage.is_data_source]:
                for out in stage.outs:
                    met = [path for path in wanted if _meet(Path(out.fs_path), path)]
                    tree = out.get_obj() if met else None
                    if tree is None:
                        continue
                    ids = {each.value for _, _, each in tree} if out.is_dir_checksum else {out.hash_info.value}
                    held = len(out.cache.oids_exist(sorted(ids)))
                    if 0 < held < len(ids):
                        raise UserError(
                            f"{out.def_path}: DVC's cache has {held:,} of its {len(ids):,} files; run `dvc pull "
                            f"{stage.relpath}` in the project, and the experiment again"
                        )
                    if held and not all(path.exists() for path in met):
                        repo.checkout([stage.addressing])
    except DvcException as error:
        raise UserError(f"the raw data of this experiment: DVC says: {' '.join(str(error).split())}") from None


def _meet(a: Path, b: Path) -> bool:
    return a.is_relative_to(b) or b.is_relative_to(a)
