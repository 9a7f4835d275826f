"""Chance in rewards: the global random generators are seeded with what is scored."""

import hashlib
import random
import sys


def seed_generators(*what: object) -> None:
    """Seed the global generators of Python and, if they are loaded, of NumPy and torch.

    A reward that uses them then says the same of the same completions: in each process, whatever was scored before.

    Parameters
    ----------
    *what : object
        What the seed depends on, by `repr`.
    """
    text = repr(what).encode(errors="surrogatepass")
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
