"""Score completions beside generation: one member's are scored while the engine makes the next one's.

Rewards run in processes of their own: one that hangs, crashes or eats memory costs what it scored and not the run.
"""

from esmpi.scoring.pool import Scorer
from esmpi.scoring.scored import Scored
from esmpi.scoring.shared import RemoteScorer, open_scorer

__all__ = ["RemoteScorer", "Scored", "Scorer", "open_scorer"]
