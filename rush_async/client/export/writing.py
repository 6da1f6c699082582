"""Writes the file of an export: a zip of parquet files, which takes its place when it is complete."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import zipfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rush_async.client.export.provenance import ro_crate

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NETWORK", "replacing", "write"]

NETWORK = "network.json"
_PARQUET = "application/vnd.apache.parquet"
_PART_ROWS = 50_000
_PART_BYTES = 16 * 1024 * 1024


def write(
    path: Path,
    network: Mapping[str, Any],
    tables: Iterable[tuple[str, str, Iterator[tuple[pl.DataFrame, int]]]],
) -> Generator[None]:
    """Writes an export, step by step, so that the caller may stop between two of them: then it leaves nothing.

    Args:
        path: the file, which the export replaces in the last step.
        network: the facts of the network.
        tables: for each table its name, what it holds, and its frames, each with the bytes of its records.
    """
    files: dict[str, tuple[str, str, int]] = {}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        data = json.dumps(network, indent=2, ensure_ascii=False, default=str).encode()
        packed.writestr(NETWORK, data)
        files[NETWORK] = "The network: its seed, rules, attributes, counts and environment", "application/json", len(data)
        for table, description, frames in tables:
            for at, part in enumerate(_parts(frames)):
                name, size = f"{table}/{at:04}.parquet", part.getbuffer().nbytes
                # A parquet file is compressed already.
                stored = zipfile.ZipInfo(name, datetime.now(UTC).timetuple()[:6])
                packed.writestr(stored, part.getbuffer(), zipfile.ZIP_STORED)
                files[name] = description, _PARQUET, size
                yield
        packed.writestr("ro-crate-metadata.json", ro_crate(network, files))


def _parts(frames: Iterator[tuple[pl.DataFrame, int]]) -> Iterator[BytesIO]:
    """Makes parquet files, at least one, that each fit into memory."""
    import polars as pl  # slow to import: loaded with the first frame

    n_rows, n_bytes, some = 0, 0, list[pl.DataFrame]()
    for frame, size in frames:
        if n_rows >= _PART_ROWS or n_bytes >= _PART_BYTES:
            yield _parquet(pl.concat(some))
            n_rows, n_bytes, some = 0, 0, []
        some.append(frame)
        n_rows, n_bytes = n_rows + frame.height, n_bytes + size
    yield _parquet(pl.concat(some))


def _parquet(frame: pl.DataFrame) -> BytesIO:
    data = BytesIO()
    frame.write_parquet(data)
    return data


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes]]:
    """A new file that takes the place of `path`, in one step, when the block ends without an error.

    Until then it is a hidden file beside it, locked by its process. What a process that was killed left there is removed.
    """
    partial, file = _new_partial(path)
    try:
        with os.fdopen(file, "w+b") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _new_partial(path: Path) -> tuple[Path, int]:
    """A hidden file beside `path` and its descriptor, which holds its lock."""
    escaped = "".join(f"[{each}]" if each in "*?[" else each for each in path.name)
    for left in path.parent.glob(f".{escaped}.*.partial"):
        with suppress(OSError), left.open("rb") as opened:  # it is locked, or gone
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        file = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX)
        if partial.exists():  # else another export took it for a leftover before it was locked
            return partial, file
        os.close(file)
