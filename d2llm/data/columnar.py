"""Rows of columns: Parquet files, and the folders that ``save_to_disk`` of Hugging Face's datasets writes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from d2llm.data.rows import PROGRESS_FROM_BYTES, json_rows, require_file
from d2llm.errors import FormatError, InputError, shown
from d2llm.files import read_json
from d2llm.requirements import require

if TYPE_CHECKING:
    import pyarrow as pa

#: How files of columns end.
_PARQUET = ".parquet"
#: In a saved folder: its files of rows, or the folders of its splits.
_STATE, _SPLITS = "state.json", "dataset_dict.json"
#: Rows that are held at once.
_AT_ONCE = 1024


def is_columnar(path: Path) -> bool:
    """Whether a path is that of a Parquet file, or of a folder that ``save_to_disk`` wrote."""
    return path.suffix.lower() == _PARQUET or _is_saved(path)


def require_rows(path: str | os.PathLike[str]) -> Path:
    """The path, if it is a file, or a folder that ``save_to_disk`` wrote.

    Raises:
        MissingError: otherwise.
    """
    return Path(path) if _is_saved(Path(path)) else require_file(path)


def object_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | FormatError]]:
    """(number, object) for every row of columns, or for every line of a JSONL file.

    Raises:
        MissingError: if there is no such file.
        InputError, FormatError, ModuleNotFoundError: as :func:`column_rows`.
    """
    return column_rows(path) if is_columnar(path) else json_rows(path)


def column_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number from 1, object) for every row, a batch at a time.

    Raises:
        InputError: for a saved folder of several splits, naming them.
        MissingError: if there is no such file, or one that a saved folder names is absent.
        FormatError: for a file that is damaged, or of another kind.
        ModuleNotFoundError: without pyarrow, saying how to install it.
    """
    saved = _is_saved(path)
    files = _saved_files(path) if saved else [require_file(path)]
    require("pyarrow", "parquet")
    import pyarrow as pa
    from pyarrow.parquet import read_metadata

    few = sum(file.stat().st_size for file in files) < PROGRESS_FROM_BYTES
    try:
        total = None if saved else read_metadata(path).num_rows
        batches = (batch for file in files for batch in (_stream if saved else _parquet)(file))
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from enumerate(tqdm(rows, path.name, total, unit="row", disable=few), start=1)
    except pa.ArrowException as error:
        kind = "saved dataset" if saved else "Parquet file"
        raise FormatError(f"{path}: not a {kind}, or damaged ({shown(str(error))})") from None


def _parquet(file: Path) -> "Iterator[pa.RecordBatch]":
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file, memory_map=True) as columns:
        yield from columns.iter_batches(_AT_ONCE)


def _stream(file: Path) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            for start in range(0, batch.num_rows, _AT_ONCE):
                yield batch.slice(start, _AT_ONCE)


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in (_STATE, _SPLITS))


def _saved_files(folder: Path) -> list[Path]:
    """The files of rows of a folder, in their order."""
    if (folder / _SPLITS).is_file():
        splits = sorted(state.parent.name for state in folder.glob(f"*/{_STATE}"))
        raise InputError(
            f"{folder}: expected one set of rows, the folder has the splits {shown(splits)}; name the folder of one of "
            "them in its place"
        )
    try:
        return [require_file(folder / each["filename"]) for each in read_json(folder / _STATE)["_data_files"]]
    except (LookupError, TypeError):
        raise FormatError(f"{folder / _STATE}: expected _data_files, a list of objects with filename") from None
