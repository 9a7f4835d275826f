"""Run esmpi with a bit flipped: python flipping.py WHAT RANK CONFIG [overrides].

One bit of one tensor on one rank is flipped in its memory, in the second generation: `theta` or `live` after the rank's
last member was evaluated, `early` theta before its first one, `updated` theta after the update, `live-evaluation` the
live weights while held-out problems are evaluated. The rest is the program as it is.
"""

import sys
from typing import Any

import torch

from esmpi import run
from esmpi.mpi.launcher import launcher

TENSOR = "model.layers.0.mlp.up_proj.weight"


def flip(tensor: torch.Tensor, element: int = 5, bit: int = 9) -> None:
    """Flip a bit of an element, in place."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    tensor.view(kind).view(-1)[element] ^= 1 << bit % (8 * tensor.element_size())


def main() -> int:
    from esmpi import train
    from esmpi.weights.host import Weights

    what, rank, *arguments = sys.argv[1:]
    started_by = launcher()
    if (started_by.rank if started_by else 0) != int(rank):
        return run.main(arguments)

    opened, done = [], []
    prepare, evaluate_members, evaluate = Weights._prepare, train.evaluate_members, train.evaluate
    update = train.shrink_theta

    def prepared(self: Weights) -> None:
        prepare(self)
        opened.append(self)

    def once(live: bool) -> None:
        if not done:
            done.append(True)
            [(view, theta)] = [part for part in opened[0].theta() if part[0].name == TENSOR]
            assert view.live is not None
            flip(view.live if live else theta)

    def evaluating_members(session: Any, *rest: Any) -> Any:
        if what == "early" and session.generation == 1:
            once(live=False)
        mine = evaluate_members(session, *rest)
        if what in ("live", "theta") and session.generation == 1:
            once(live=what == "live")
        return mine

    def evaluating(session: Any, *rest: Any) -> Any:
        found = evaluate(session, *rest)
        if what == "live-evaluation":
            once(live=True)
        return found

    def after_update(session: Any, *rest: Any) -> Any:
        if what == "updated" and session.generation == 1:
            once(live=False)
        return update(session, *rest)

    Weights._prepare = prepared
    train.evaluate_members, train.evaluate, train.shrink_theta = evaluating_members, evaluating, after_update
    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
