"""Weights that are not what they must be: found on the rank that has them, named, and repaired if the config says so.

Theta has a digest that all ranks know, and live weights are written by a deterministic function of theta. So a bit that
a defective memory or a bug has changed is found by computing the digest and writing the live weights again.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from esmpi.es.population import ADVICE, DesyncError
from esmpi.mpi.comm import RankLostError
from esmpi.mpi.nodes import host_name
from esmpi.resume import catch_up, go_to
from esmpi.wording import counted, listed

if TYPE_CHECKING:
    from esmpi.session import Session

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def check_weights(session: "Session", when: str) -> None:
    """Collective. Check that theta of each rank is what it was, and its live weights what was last written there.

    Raises
    ------
    DesyncError
        On all ranks, if they are not on any: it names the rank, its host, and the tensors.
    """
    weights = session.engine.weights
    theta_is_right = weights.digest() == session.digest
    # live weights that were written before theta changed say nothing
    live = weights.damaged() if theta_is_right else []
    everyone = session.comm.allgather_object([host_name(), theta_is_right, live])
    if all(right and not names for _, right, names in everyone):
        return
    shares: list[dict[str, int]] = []
    if not all(right for _, right, _ in everyone):
        shares = session.comm.allgather_object(weights.tensor_digests())
    raise DesyncError(f"{when}: {describe(everyone, shares)}. {ADVICE}")


def describe(everyone: list[Any], shares: list[dict[str, int]]) -> str:
    """Return a message that names the ranks whose weights are wrong, and the tensors.

    Parameters
    ----------
    everyone : list of (str, bool, list of str)
        By rank: its host, whether theta is right, and the tensors whose live weights are wrong.
    shares : list of dict
        By rank, each tensor's share of theta's digest, if theta is wrong on any. If no rank is right, the tensors are
        not known.
    """
    right = next((shares[rank] for rank, (_, is_right, _) in enumerate(everyone) if is_right and shares), None)
    said = []
    for rank, (host, theta_is_right, live) in enumerate(everyone):
        where = f"on rank {rank} ({host})"
        if not theta_is_right:
            names = [] if right is None else [name for name in right if shares[rank].get(name) != right[name]]
            said.append(f"theta has changed {where}" + (f": {listed(names)}" if names else ""))
        elif live:
            said.append(f"live weights have changed {where}: {listed(live)}")
    return "; ".join(said)


def repaired(session: "Session", work: Callable[[], Result]) -> Result:
    """Collective. Do something, and do it again with theta replayed if weights were found to be wrong meanwhile.

    What is done has to begin from theta of the session's generation, and to leave nothing behind if it raises. Without
    `run.on_desync: repair`, or at the second time, the error stands.
    """
    try:
        return work()
    except DesyncError as error:
        if session.config.run.on_desync == "stop":
            raise
        what = str(error).removesuffix(f". {ADVICE}")
        log.warning("%s. Theta of generation %d is replayed, and its use is repeated", what, session.generation)
    session.recorder.wait()
    go_to(session, session.generation)
    return work()


def surviving(session: "Session", work: Callable[[], Result]) -> Result:
    """Collective. Do something that may begin anew from the last commit; if ranks are lost, do so with those left.

    Without `run.on_rank_loss: shrink`, the loss of a rank ends all of them.
    """
    rejoins = False
    while True:
        try:
            if rejoins:
                _rejoin(session)
            return work()
        except RankLostError:
            rejoins = True


def _rejoin(session: "Session") -> None:
    """Collective over the ranks that are left. Go to the last generation that rank 0 has committed."""
    size = session.comm.size
    lost = session.comm.shrink()
    tell = log.warning if session.comm.is_root else log.info
    tell("lost ranks %s of %d; with %s left, the run continues", lost, size, counted(session.comm.size, "rank"))
    session.recorder.wait()
    session.results.clear()  # a rank may know of an evaluation that rank 0 does not
    session.engine.weights.load(None)
    catch_up(session)


def is_checked(session: "Session", generation: int) -> bool:
    """Return whether the weights are checked in a generation."""
    every = session.config.engine.check_every
    return every > 0 and ((generation + 1) % every == 0 or generation + 1 == session.config.es.generations)
