"""The team's commands: `memoir share ...`, `memoir store ...` and `memoir gc`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.console import say, tell

HERE = Path()
share = typer.Typer(
    help="A team on one bucket: data, shards, runs and models.", no_args_is_help=True, rich_markup_mode=None
)
store = typer.Typer(help="Stores of runs and models.", no_args_is_help=True, rich_markup_mode=None)

Remote = Annotated[str | None, typer.Option("--remote", help="of DVC; the default one by default")]


@share.command()
def init(
    uri: Annotated[str, typer.Argument(help="s3://bucket/prefix, for this team alone")],
    endpoint: Annotated[str | None, typer.Option(help="URL of the S3 server, where it is not Amazon's")] = None,
) -> None:
    """Set this repository up to share data, shards, runs and models through a bucket, once it has been tried out."""
    import os

    from jobs.sharing.settings import share
    from pipeline.params import ENDPOINT

    chosen = endpoint or os.environ.get(ENDPOINT) or None
    done = share(HERE.resolve(), uri, chosen)
    for place, may in done.rights.items():
        say(f"{place}: {may}")
    if not done.files:
        say(f"{uri}: is set up already; nothing changed")
        return
    names = " ".join(str(path.relative_to(HERE.resolve())) for path in done.files)
    say(f"written: {names}; the server is {chosen or 'Amazon'}, and no credentials are in them")
    if done.had:
        say(f"the runs and models of {done.had!r} stay there; `memoir store copy {done.had} {uri}` brings them over")
    say(f"you: git commit {names} -m 'Share one bucket' && git push && dvc push")
    say(
        "a colleague: git clone ..., set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), make setup, dvc pull"
    )


@share.command()
def status() -> None:
    """Check the settings, the rights in the bucket, and that this checkout's pointers are in the store."""
    from jobs.sharing.health import examine_sharing
    from pipeline.params import FILE, read_params, use_endpoint

    params = read_params(FILE)
    use_endpoint(params)
    healthy = True
    for finding in examine_sharing(HERE.resolve(), params, Path("runs")):
        say(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.detail}")
        healthy &= finding.ok
    if not healthy:
        raise typer.Exit(1)


@share.command()
def verify(
    remote: Remote = None,
    all_revisions: Annotated[bool, typer.Option("--all-revisions", help="what all branches and tags name")] = False,
    contents: Annotated[bool, typer.Option("--contents", help="read what the server gives no MD5 of")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="send what is wrong from this machine's cache")] = False,
) -> None:
    """What DVC's remote really holds against what this checkout names: missing, truncated, other contents."""
    from jobs.sharing.verify import verify

    found = verify(HERE.resolve(), remote, all_revisions=all_revisions, contents=contents, repair=repair)
    for problem in found.repaired:
        say(f"repaired: {problem.line()}")
    for problem in found.problems:
        here = "; it is not in this machine's cache either" if repair else ""
        tell(f"{problem.line()}{here}")
    for each in found.skipped:
        tell(f"not checked: {each.path}: {each.reason}")
    say(
        f"{found.uri}: {found.objects:,} objects, {found.bytes:,} bytes: {found.by_contents:,} known by contents, "
        f"{found.by_size:,} by size, {found.by_name:,} by name; {len(found.problems):,} wrong"
    )
    if found.problems:
        if not repair:
            tell(
                f"{found.uri}: --repair sends what this machine's cache has; a clone that has the rest can do the same"
            )
        raise typer.Exit(1)


def gc(
    remote: Remote = None,
    also: Annotated[list[Path] | None, typer.Option(help="another clone, whose unpushed work counts too")] = None,
    older: Annotated[str, typer.Option(help="what was written later than so long ago stays, e.g. 14d or 12h")] = "14d",
    tips: Annotated[
        bool,
        typer.Option("--tips", help="only tips of branches, tags and experiments count, not the commits behind them"),
    ] = False,
    really: Annotated[bool, typer.Option("--delete", help="delete it; without, it is only listed")] = False,
) -> None:
    """What no revision, working copy, run in progress or published model names, in DVC's remote, the shards and the store."""
    from jobs.sharing.garbage import delete, find_garbage
    from pipeline.params import FILE, read_params, use_endpoint

    use_endpoint(read_params(FILE))
    found = find_garbage(HERE.resolve(), remote, also=also or [], days=_days(older), tips=tips)
    rows = [("what nobody names", "objects", "bytes", "named", "young")]
    for kind in found.kinds:
        sizes = [len(kind.garbage), sum(entry.size for entry in kind.garbage), len(kind.kept), len(kind.young)]
        rows.append((kind.name, *(f"{size:,}" for size in sizes)))  # type: ignore[arg-type]
    unknown = [entry for entries in found.unknown.values() for entry in entries]
    rows.append(("unknown, never deleted", f"{len(unknown):,}", f"{sum(entry.size for entry in unknown):,}", "", ""))
    for name, *numbers in rows:
        say(f"{name:<26}{''.join(f'{number:>16}' for number in numbers)}".rstrip())
    for uri, entries in found.unknown.items():
        say(f"unknown in {uri}: {entries[0].name}{f' and {len(entries) - 1:,} more' if len(entries) > 1 else ''}")
    for note in found.notes:
        tell(note)
    garbage = sum(len(kind.garbage) for kind in found.kinds)
    if not really:
        say(f"{found.revisions} revisions; {garbage:,} objects would be deleted with --delete")
        return
    for name, number in delete(found):
        say(f"deleted: {number:,} of {name}")


def _days(text: str) -> float:
    """A length of time, as 14d or 12h, in days."""
    import re

    from pipeline.errors import UserError

    found = re.fullmatch(r"(\d{1,5})([dh])", text)
    if not found:
        raise UserError(f"--older {text}: expected a number of days or hours, as 14d or 12h")
    if not int(found[1]):
        raise UserError(f"--older {text}: what a push or a build is just writing has no name yet; give it at least 1h")
    return int(found[1]) / (1 if found[2] == "d" else 24)


@store.command()
def copy(
    source: Annotated[str, typer.Argument(help="a folder, file:// or s3://bucket/prefix")],
    target: Annotated[str, typer.Argument(help="another one")],
    names: Annotated[
        list[str] | None, typer.Argument(help="models/<recipe>[/<version>] or runs/<run>; all by default")
    ] = None,
    use: Annotated[bool, typer.Option("--use", help="name the target as the store in params.yaml")] = False,
) -> None:
    """Copy published models and finished runs to another store: what is missing there, checked, continued when killed."""
    from jobs.sharing.transfer import copy
    from pipeline.params import FILE

    done = copy(source, target, names or [], say)
    for line in done.left:
        tell(f"not copied: {line}")
    say(
        f"{target}: {len(done.versions)} versions, {len(done.runs)} runs, {len(done.pointers)} pointers copied, "
        f"{done.bytes:,} bytes; {done.there} were there"
    )
    if use:
        from jobs.sharing.settings import edited
        from pipeline.files import write_bytes

        write_bytes(FILE, edited(FILE, {"store": target}))
        say(f"{FILE}: store is {target} now")
    else:
        say(f"to work with it, set `store: {target}` in {FILE}, or say --use")
