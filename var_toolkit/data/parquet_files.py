"""Parquet files that hold images. pyarrow, which reads them, is an extra."""

from __future__ import annotations

import hashlib
import importlib.util
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from var_toolkit.data.shards import Member, add_member, all_members
from var_toolkit.files import write_whole
from var_toolkit.progress import Progress

AT_A_TIME = 64  # rows


class ParquetImages:
    """A parquet file with a column of images. ValueError in one line if it is damaged, or if pyarrow is missing."""

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise ValueError(f"{path} needs the package pyarrow: pip install 'var-toolkit[parquet]'")
        from pyarrow.parquet import ParquetFile

        with _damage_named(path):
            self._path, self._table = path, ParquetFile(path)
        self.columns: list[str] = self._table.schema_arrow.names

    def holds_paths(self, column: str) -> bool:
        """Whether a column holds names of image files; else it holds their bytes. ValueError if it is neither."""
        from pyarrow import types

        kind = self._table.schema_arrow.field(column).type
        if types.is_string(kind) or types.is_large_string(kind):
            return True
        inside = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if not (types.is_binary(inside) or types.is_large_binary(inside)):
            raise ValueError(
                f"{self._path}: column {column} holds {kind}; expected image files as bytes, or their names"
            )
        return False

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Some columns of every row."""
        with _damage_named(self._path):
            for batch in self._table.iter_batches(AT_A_TIME, columns=list(columns)):
                yield from batch.to_pylist()

    def unpacked(self, column: str, cache_dir: Path) -> list[Member]:
        """The images of a column of bytes, in a shard in `cache_dir` that is written once; empty where there is none.

        In the parquet file itself an image cannot be read without some hundred neighbours.
        """
        status = self._path.stat()
        of = repr((str(self._path.resolve()), status.st_size, status.st_mtime_ns, column))
        shard = cache_dir / f"{self._path.stem}-{hashlib.blake2b(of.encode(), digest_size=8).hexdigest()}.tar"
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(shard.with_suffix(".lock")):
            if not shard.exists():
                write_whole(shard, lambda temporary: self._unpack(column, temporary))
        return all_members(shard)

    def _unpack(self, column: str, shard: Path) -> None:
        with (
            tarfile.open(shard, "w") as archive,
            Progress(self._table.metadata.num_rows, "images", what="unpacking") as bar,
        ):
            for number, row in enumerate(self.rows([column])):
                value = row[column]
                image = value["bytes"] if isinstance(value, dict) else value
                add_member(archive, f"row-{number}", image or b"")
                bar.update()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is damaged, or is not a parquet file: {line}; download it again or remove it"
        ) from None
