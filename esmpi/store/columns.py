"""Columns of tables: a structured array is stored as a data set for each of its columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from esmpi.store.seal import put, put_attribute


def write_columns(group: h5py.Group, table: np.ndarray, columns: Sequence[str] | None = None) -> None:
    """Write a structured array as a data set for each of its columns, or for those that are named."""
    for name in columns or table.dtype.names or ():
        describe(put(group, name, table[name]), name)


Part = tuple[str, str, int, tuple[int, ...]]
"""Of a virtual data set: the file (`.` is the same one) and the data set there, the first row, and the part's shape."""


def write_virtual(
    group: h5py.Group, name: str, dtype: np.dtype, fill: Any, shape: tuple[int, ...], parts: Sequence[Part]
) -> None:
    """Add a column whose rows are in other data sets; what none of them has is `fill`.

    As `create_virtual_dataset` does, but without the time, so that the same contents are the same bytes.
    """
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(fill, dtype))
    space = h5py.h5s.create_simple(shape)
    for file, source, start, size in parts:
        space.select_hyperslab((start, *(0 for _ in size[1:])), size)
        properties.set_virtual(space, file.encode(), source.encode(), h5py.h5s.create_simple(size))
    space.select_all()
    kind = h5py.h5t.py_create(dtype, logical=True)
    describe(h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=properties), name)


def read_columns(
    group: h5py.Group,
    dtype: np.dtype,
    columns: Sequence[str] | None = None,
    ndim: int = 2,
    defaults: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Return data sets as a structured array.

    Parameters
    ----------
    group : h5py.Group
        The data sets, named as the fields of `dtype`.
    dtype : dtype
    columns : sequence of str, optional
        The columns to read, by default all; the others are zero.
    ndim : int
        Dimensions that the table has.
    defaults : mapping, optional
        Columns that the group may lack, each with the value that it then has in every row.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the data sets differ in shape, do not have `ndim` dimensions, or hold no values of their columns' types.
    """
    missing = {name: value for name, value in (defaults or {}).items() if name not in group}
    names = [name for name in columns or dtype.names or () if name not in missing]
    shape = group[names[0]].shape
    for name in names:
        check_column(group[name], shape, ndim)
        if not np.can_cast(group[name].dtype, dtype[name], "same_kind"):
            raise ValueError(f"{group[name].name} has values of type {group[name].dtype}")
    table = np.zeros(shape, dtype)
    for name in names:
        table[name] = group[name][()]
    for name, value in missing.items():
        table[name] = value
    return table


def check_column(dataset: h5py.Dataset, shape: tuple[int, ...], ndim: int) -> None:
    """Raise ValueError unless a data set has this shape and `ndim` dimensions."""
    if dataset.shape != shape or len(shape) != ndim:
        raise ValueError(f"{dataset.name} has shape {dataset.shape}")


def describe(dataset: h5py.h5d.DatasetID, name: str) -> None:
    """Give a column the attribute `unit` that goes with its name, if one does."""
    if name.startswith("seconds") or name == "unix_time":
        put_attribute(dataset, "unit", "s")
    elif name == "tokens":
        put_attribute(dataset, "unit", "tokens")
