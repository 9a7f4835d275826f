"""What an HDF5 file of esmpi may consist of: plain tables and plain attributes, all of them inside of the file.

The format allows far more. A data set may take its values from any other file, a link may lead there, a file of a
kilobyte may promise terabytes, and a filter may unpack a page of zeros into them. esmpi writes none of this. A file
with it is somebody else's, and is refused before a value is read.
"""

from collections.abc import Iterator

import h5py

MOST_OBJECTS = 100_000
"""Groups and data sets in a file: a thousand suites of a hundred figures."""
MOST_ATTRIBUTES = 100
_MOST_DEPTH = 3
_LAYOUTS = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT, h5py.h5d.CHUNKED)


def check_hdf5(file: h5py.File, num_bytes: int, virtual: str | None = None) -> None:
    """Raise ValueError unless a file has only what esmpi writes.

    Parameters
    ----------
    file : h5py.File
    num_bytes : int
        Size of the file. Its data sets may not take more, each counted once for each of its names.
    virtual : str, optional
        A group whose data sets may be virtual; they are not looked at, and the caller must not read them.
    """
    _check_attributes(file, num_bytes)
    left = num_bytes
    seen = set()
    for count, (path, identifier) in enumerate(_objects(file.id, "", 0), 1):
        if count > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS:,} groups and data sets")
        if (address := h5py.h5o.get_info(identifier).addr) in seen:
            raise ValueError(f"{path} is another object under a second name")
        seen.add(address)
        if isinstance(identifier, h5py.h5d.DatasetID) and (virtual is None or not path.startswith(f"/{virtual}/")):
            left -= _check_dataset(path, identifier)
            if left < 0:
                raise ValueError(f"{path} and others promise more data than the file has bytes")


def _objects(group: h5py.h5g.GroupID, path: str, depth: int) -> "Iterator[tuple[str, h5py.h5i.ObjectID]]":
    """Yield the groups and data sets below a group, through hard links alone."""
    if depth > _MOST_DEPTH:
        raise ValueError(f"{path} is too deep")
    for name in group:
        inner = f"{path}/{name.decode(errors='replace')}"
        if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{inner} is a link to another place")
        identifier = h5py.h5o.open(group, name)
        if not isinstance(identifier, h5py.h5g.GroupID | h5py.h5d.DatasetID):
            raise ValueError(f"{inner} is neither a group nor a data set")
        yield inner, identifier
        if isinstance(identifier, h5py.h5g.GroupID):
            yield from _objects(identifier, inner, depth + 1)


def _check_dataset(path: str, dataset: h5py.h5d.DatasetID) -> int:
    """Return how many bytes a data set takes; raise ValueError unless it is a plain table that stores all its values.

    HDF5 allows a data set of any shape that stores nothing: terabytes fit into a file of a kilobyte.
    """
    properties = dataset.get_create_plist()
    if properties.get_layout() not in _LAYOUTS or properties.get_external_count():
        raise ValueError(f"{path} takes its values from other files")
    if properties.get_nfilters():
        raise ValueError(f"{path} is compressed or otherwise filtered")
    kind = dataset.dtype
    if kind.kind not in "biufS" or kind.subdtype is not None:
        raise ValueError(f"{path} is no table of numbers: its type is {kind}")
    size: int = kind.itemsize
    for length in dataset.shape:
        size *= length
    stored = dataset.get_storage_size()
    # the last of equal chunks may reach beyond the end
    if stored < size or (stored > size and properties.get_layout() != h5py.h5d.CHUNKED):
        raise ValueError(f"{path} has shape {dataset.shape}, but stores {stored:,} bytes")
    return int(stored)


def _check_attributes(file: h5py.File, num_bytes: int) -> None:
    if h5py.h5a.get_num_attrs(file.id) > MOST_ATTRIBUTES:
        raise ValueError(f"more than {MOST_ATTRIBUTES} attributes")
    for i in range(h5py.h5a.get_num_attrs(file.id)):
        attribute = h5py.h5a.open(file.id, index=i)
        name, kind = attribute.name.decode(errors="replace"), attribute.dtype
        is_text = isinstance(attribute.get_type(), h5py.h5t.TypeStringID)
        if attribute.shape != () or not (is_text or kind.kind in "biuf"):
            raise ValueError(f"attribute {name} is neither a text nor a number")
        if attribute.get_storage_size() > num_bytes:
            raise ValueError(f"attribute {name} promises more than the file has bytes")
