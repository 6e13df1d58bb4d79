"""Parquet tables, read with suspicion, and columns of them as arrays. Needs pyarrow (``pip install d2ppo[data]``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import DatasetError, UsageError
from agent.memory import preflight

_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, OverflowError, MemoryError,
    RuntimeError, ArithmeticError,
)  # fmt: skip


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """The table of one file (``pyarrow.Table``), of ``columns`` only (None: of all that hold one number a row).

    Raises:
        DatasetError: absent, no parquet, damaged, a column missing.
        UsageError: pyarrow is not installed, or the table needs more memory than is free.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"{path}: reading parquet needs pyarrow: pip install 'd2ppo[data]' ({error})") from error
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise DatasetError(f"{path}: no column {missing[0]}; it has {', '.join(map(str, names[:30]))}")
            plain = [field.name for field in file.schema_arrow if pa.types.is_primitive(field.type)]
            wanted = plain if columns is None else list(columns)
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            preflight(
                {f"{path.name}": sum(max(group.total_byte_size, 0) for group in groups)}, ["the number of episodes"]
            )
            table = file.read(columns=wanted, use_threads=False)
            table.validate(full=True)
    except UsageError:
        raise
    except (*_DAMAGE, pa.ArrowException) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path}: damaged, or no parquet file ({what}). Download it again") from error
    return table


def column(table: Any, name: str, width: int | None, where: str, kinds: str = "fiub") -> np.ndarray:
    """Column ``name`` as ``(rows, width)`` (None: any width), or ``(rows,)`` where ``width`` is 0.

    Raises:
        DatasetError: gaps, no numbers of ``kinds`` (NumPy's letters), rows of different widths, values that are not finite.
    """
    import pyarrow as pa

    values = table[name].combine_chunks()
    kind = values.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    flat = values.flatten() if listed else values
    if values.null_count or flat.null_count:
        raise DatasetError(f"{where}: {name} has gaps; expected a value in every row")
    if not (pa.types.is_primitive(flat.type) and not pa.types.is_temporal(flat.type)):
        raise DatasetError(f"{where}: {name}: expected numbers, found {kind}")
    array = flat.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in kinds:
        raise DatasetError(f"{where}: {name}: expected numbers, found {kind}")
    rows = len(values)
    if listed and rows:
        lengths = np.unique(
            values.value_lengths().to_numpy() if not pa.types.is_fixed_size_list(kind) else [kind.list_size]
        )
        if len(lengths) != 1:
            raise DatasetError(
                f"{where}: {name}: rows of {lengths.min()} to {lengths.max()} numbers; expected as many in each"
            )
    array = array.reshape(rows, -1) if rows else array.reshape(0, width or 1)
    if (width is not None and array.shape[1] != max(width, 1)) or not array.shape[1]:
        raise DatasetError(
            f"{where}: {name}: expected {max(width or 1, 1)} numbers in each row, found {array.shape[1]}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise DatasetError(f"{where}: {name}: NaN or infinity in row {row}")
    return array[:, 0] if width == 0 else array
