"""What is known of each member: the one description from which the ranks' messages and the run file are made.

`docs/run-files.md` has the stored columns as a table, which a test compares with this one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

OK, FAILED, ABSENT = 0, 1, 2
"""Status of a member: evaluated; not (then its fitness is NaN and its coefficient 0); or, in files, only padding of a
generation that has fewer members than others."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One thing that is known of each member."""

    name: str
    dtype: type[np.generic]
    unit: str = ""
    """As files state it; empty without one."""
    sent: bool = True
    """Whether the rank that evaluated the member tells the others."""
    stored: bool = True
    """Whether it is a column of the run file."""
    absent: Any = 0
    """What stands for a member that does not exist, in the table of a run whose generations differ in size."""
    default: Any = None
    """What every member has in a run file of an esmpi that did not have the column. None: all run files have it."""
    doc: str = ""
    """What the column holds."""


MEMBER_COLUMNS = (
    Column(name="seed", dtype=np.uint64, doc="of the member's noise"),
    Column(name="sign", dtype=np.int8, doc="1, or -1 for the second of an antithetic pair"),
    Column(
        name="status",
        dtype=np.uint8,
        sent=False,  # a member without a fitness is one that failed
        absent=ABSENT,
        doc="0 evaluated; 1 failed: fitness NaN, coefficient 0; 2 absent: there is no such member",
    ),
    Column(
        name="fitness", dtype=np.float64, unit="reward", absent=np.nan, doc="mean reward of its prompts that have one"
    ),
    Column(
        name="coefficient",
        dtype=np.float32,
        sent=False,  # every rank computes it
        doc="what its noise was multiplied with in the update, sign included",
    ),
    Column(name="rank", dtype=np.int32, sent=False, doc="that evaluated it"),
    Column(name="seconds", dtype=np.float32, unit="s", doc="perturbing and generating"),
    Column(name="tokens", dtype=np.int32, unit="tokens", doc="new tokens"),
    Column(
        name="member",
        dtype=np.int32,
        stored=False,  # it is the place in the row
        doc="which member this is; -1 for the padding of a rank that has fewer members than others",
    ),
)

SENT = tuple(column for column in MEMBER_COLUMNS if column.sent)
"""What a rank sends of each of its members."""
STORED = tuple(column for column in MEMBER_COLUMNS if column.stored)
"""What the run file has of each member, in the order of its columns."""
MEMBER_DTYPE = np.dtype([(column.name, column.dtype) for column in STORED])
"""A member in the run file."""
MEMBER_DEFAULTS = {column.name: column.default for column in STORED if column.default is not None}
"""The columns that a run file may lack, with what stands in for them."""
