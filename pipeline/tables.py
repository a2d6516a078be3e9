"""The Parquet tables of a built dataset: their columns, and the checks that they must pass before they are trusted.

A table may come from a bucket: it is checked here once, when it is read, and nowhere else. Everything works on whole columns,
since there may be 10 million rows and more.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError

INDEX_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.string()),  # file name: the start of the sha256 of its bytes
        ("key", pa.string()),
        ("group", pa.string()),
        ("member", pa.string()),  # name of the member without the key: gt.npy, lq-q10.npy, json
        ("role", pa.string()),  # gt | lq | mask | frame | negative | json; lq1, negative1, ...: of other views
        (
            "level",
            pa.int32(),
        ),  # quality, factor; for published pairs the number of the input, for a scene the number of the frame
        ("offset", pa.int64()),  # where the member's contents begin in the shard
        ("length", pa.int64()),  # bytes of the contents
        ("header", pa.int32()),  # bytes of the .npy header before the pixels
        ("shape", pa.list_(pa.int32())),  # H, W, C
        ("dtype", pa.string()),
        ("parameters", pa.string()),  # JSON: what made this member
        ("sha256", pa.string()),  # of the contents
    ]
)

# For a task of time-lapse scenes: the pairs of frames that are samples, by the numbers of their frames.
PAIRS_SCHEMA = pa.schema([("split", pa.string()), ("key", pa.string()), ("v", pa.int32()), ("w", pa.int32())])

# For a task with negatives: see pipeline.sampling.negatives.
NEGATIVES_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("level", pa.int32()),
        ("k", pa.int32()),
        ("permille", pa.int32()),
        ("partner", pa.string()),
        ("partner_level", pa.int32()),
    ]
)

SOME_NULL = {"level", "header", "shape", "dtype", "parameters"}  # the columns that may have nulls
GROUP_ROWS = 2**20  # the most rows of a row group: it is in memory at once, and the build writes 100,000
LONGEST = 2000  # the most bytes of a text; the longest texts are the parameters
KEY = r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,239}$"
MEMBER = r"^(gt|(lq[1-7]?|mask|frame|negative[1-7]?)-[a-z]?[0-9]{1,10}(-[0-9]{1,10})?)\.(npy|png)$"
SHA256 = r"^[0-9a-f]{64}$"
BLOCK = 512  # bytes: members of a tar file begin at multiples of it
MEBI = 2**20


def read_table(source: bytes | Path, schema: pa.Schema, where: str, *, rows: int | None = None) -> pa.Table:
    """A Parquet table with the columns of `schema`, in order; nulls only where they may be.

    source: contents, or a file. where: for messages. rows: their number; None: unknown. Memory is in proportion to the rows: a short text that a table repeats a billion times, or a text of a
    gigabyte, is refused before it is written out.
    Raises UserError for a file that is not such a table.
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    found = []
    opened = pa.py_buffer(source) if isinstance(source, bytes) else source
    try:
        with pq.ParquetFile(_file(opened)) as file:
            _check_shape(file, schema, where, rows)
        with pq.ParquetFile(_file(opened), read_dictionary=texts) as file:
            for group in range(file.num_row_groups):
                part = _written_out(file.read_row_group(group), schema, where)
                if len(part) != file.metadata.row_group(group).num_rows:
                    raise _damaged(where, f"row group {group} has {len(part):,} rows and says otherwise")
                found.append(part)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(where, "not readable as Parquet") from None
    return pa.concat_tables(found or [schema.empty_table()]).combine_chunks()


def _file(source: pa.Buffer | Path) -> pa.BufferReader | Path:
    return source if isinstance(source, Path) else pa.BufferReader(source)


def _check_shape(file: pq.ParquetFile, schema: pa.Schema, where: str, rows: int | None) -> None:
    """Raise UserError unless a Parquet file says that it has these columns and so many rows, in groups of a decent size."""
    held = {field.name: field.type for field in file.schema_arrow}
    for field in schema:
        if held.get(field.name) != field.type:
            raise _damaged(where, f"its column {field.name} is {held.get(field.name, 'missing')}, not {field.type}")
    if list(held) != schema.names or len(file.schema_arrow) != len(schema):
        raise _damaged(where, f"its columns are not {', '.join(schema.names)}")
    if rows is not None and file.metadata.num_rows != rows:
        raise _damaged(where, f"has {file.metadata.num_rows:,} rows, and shards.json counts {rows:,}")
    groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
    if (largest := max((group.num_rows for group in groups), default=0)) > GROUP_ROWS:
        raise _damaged(where, f"has a row group of {largest:,} rows; up to {GROUP_ROWS:,} are read")


def _written_out(part: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """A part of a table whose texts are dictionaries, as `schema` has it. Raises UserError for texts that no build writes."""
    columns = []
    for field in schema:
        column = part[field.name]
        if pa.types.is_string(field.type):
            for chunk in column.chunks:
                chunk.validate(full=True)
                if len(chunk.dictionary) and pc.max(pc.binary_length(chunk.dictionary)).as_py() > LONGEST:
                    raise _damaged(where, f"its column {field.name} has a text of more than {LONGEST:,} bytes")
            column = column.cast(field.type)
        columns.append(column)
    written = pa.Table.from_arrays(columns, schema=schema)
    _check_nulls(written, where)
    return written


def _check_nulls(table: pa.Table, where: str) -> None:
    """Raise UserError unless every row has a value in every column that needs one."""
    for name in table.schema.names:
        if name not in SOME_NULL and table[name].null_count:
            raise _damaged(where, f"its column {name} has rows without a value")


def check_index(table: pa.Table, sizes: Mapping[str, int], codec: str, bits: int, where: str) -> None:
    """Raise UserError, which names the first row that is wrong, unless every row describes a member inside its shard.

    table: rows of INDEX_SCHEMA. sizes: bytes of each shard, by <split>/<name>. codec, bits: of the images. where: for
    messages.
    """
    _check_nulls(table, where)
    place = pc.binary_join_element_wise(table["split"], table["shard"], "/")
    shard = pc.index_in(place, pa.array(sizes, pa.string()))
    if shard.null_count:
        missing = place[pc.index(shard.is_null(), True).as_py()]
        raise UserError(f"{where}: lists {str(missing)[:60]!r}, which shards.json lacks; run `memoir build` again")
    nbytes = np.fromiter(sizes.values(), np.int64, len(sizes))[shard.to_numpy()]
    offset, length = table["offset"].to_numpy(), table["length"].to_numpy()
    level = table["level"].fill_null(-1).to_numpy()
    json = pc.equal(table["member"], "json").to_numpy()
    _expect(where, pc.match_substring_regex(table["key"], KEY), "its key is none")
    _expect(where, pc.equal(table["group"], table["key"]), "its group is not its key")
    _expect(
        where,
        _names(table["member"], table["role"], "png" if codec == "png" else "npy"),
        "its member is none of its role",
    )
    _expect(where, pc.match_substring_regex(table["sha256"], SHA256), "its sha256 is none")
    _expect(where, (offset >= BLOCK) & (offset % BLOCK == 0), "its offset is no place of a member")
    _expect(where, (length > 0) & (offset <= nbytes) & (length <= nbytes - offset), "it lies outside its shard")
    leveled = pc.match_substring_regex(table["role"], r"^(lq[1-7]?|mask|frame|negative[1-7]?)$").to_numpy()
    _expect(where, leveled == table["level"].is_valid().to_numpy(), "its level does not fit its role")
    _expect(where, level >= -1, "its level is negative")
    for name in ("shape", "header", "dtype"):
        _expect(where, table[name].is_valid().to_numpy() != json, f"its {name} does not fit its role")
    _check_arrays(table.filter(pa.array(~json)), np.flatnonzero(~json), codec, bits, where)


def _check_arrays(table: pa.Table, rows: np.ndarray, codec: str, bits: int, where: str) -> None:
    """The part of `check_index` that is about images. rows: where these rows are in the whole table."""
    _expect(where, pc.equal(pc.list_value_length(table["shape"]), 3), "its shape has not three sides", rows)
    sides = table["shape"].combine_chunks().flatten()
    if sides.null_count:
        raise _damaged(where, "a shape lacks a side")
    height, width, channels = sides.to_numpy().reshape(-1, 3).astype(np.int64).T
    fixed = pc.equal(table["dtype"], "int16").to_numpy()
    of_levels = pc.equal(table["dtype"], f"uint{bits}").to_numpy()
    made = pc.match_substring_regex(table["role"], "^(lq|negative)").to_numpy()
    _expect(where, of_levels | (fixed & made), f"its dtype is not that of {bits} bits a channel", rows)
    _expect(where, (height > 0) & (width > 0) & ((channels == 1) | (channels == 3)), "its shape is no image's", rows)
    _expect(
        where, pc.is_in(table["role"], pa.array(["mask"])).to_numpy() <= (channels == 1), "a mask has colours", rows
    )
    header, length = table["header"].to_numpy(), table["length"].to_numpy()
    # computed in float64, which is exact where it matters and does not wrap
    nbytes = height.astype(np.float64) * width * channels * np.where(fixed, 2, bits // 8)
    if codec == "png":  # PNG shrinks an image by a factor of at most 1,030
        fits = (header == 0) & (nbytes <= 1030.0 * length + MEBI)
    else:
        fits = (header > 0) & (nbytes == length - header.astype(np.int64))
    _expect(where, fits, "its shape does not fit its length", rows)


def _names(member: pa.ChunkedArray, role: pa.ChunkedArray, suffix: str) -> np.ndarray:
    """Which names of members are valid for their roles, with this suffix; only the few different names are checked."""
    known = pc.match_substring_regex(member, MEMBER).to_numpy() & pc.ends_with(member, f".{suffix}").to_numpy()
    named = pc.binary_join_element_wise(role, member, "/")
    pairs = pc.unique(named).to_pylist()
    fits = pa.array([pair for pair in pairs if _role(*pair.split("/", 1))], pa.string())
    return (known | pc.equal(member, "json").to_numpy()) & pc.is_in(named, fits).to_numpy()


def _role(role: str, member: str) -> bool:
    return role == member.partition("-")[0].partition(".")[0]


def check_numbers(table: pa.Table, least: Mapping[str, int], most: Mapping[str, int], where: str) -> None:
    """Raise UserError, which names the first row that is wrong, unless keys are keys and columns within these limits."""
    for name in ("key", "partner"):
        if name in table.schema.names:
            _expect(where, pc.match_substring_regex(table[name], KEY), f"its {name} is none")
    for name, low in least.items():
        values = table[name].to_numpy()
        _expect(where, (values >= low) & (values <= most.get(name, 2**31)), f"its {name} is out of range")


def _expect(where: str, holds: object, what: str, rows: np.ndarray | None = None) -> None:
    wrong = np.flatnonzero(~np.asarray(holds, bool))
    if len(wrong):
        row = int(wrong[0] if rows is None else rows[wrong[0]])
        raise _damaged(where, f"row {row:,}: {what}")


def _damaged(where: str, what: str) -> UserError:
    return UserError(f"{where}: {what}; run `memoir build` again, or fetch it anew")
