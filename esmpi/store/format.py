"""What a run file consists of: its version, its tables and its attributes. docs/run-files.md describes the file."""

import math

import numpy as np

FORMAT_VERSION = 4
"""4 added segments of generations to 3. 3 added sigma, alpha, shrink and the fitness of theta to each generation, and
events, to 2. 2 added segments, forks, log-only files and kinds of failed rewards to 1. Files of older versions are
read, and become files of this one at the next commit."""

GENERATION_DTYPE = np.dtype(
    [
        ("generation", np.int64),
        ("fitness_mean", np.float64),
        ("fitness_std", np.float64),
        ("fitness_min", np.float64),
        ("fitness_max", np.float64),
        ("fitness_theta", np.float64),  # of theta itself, on the same prompts; NaN if it was not evaluated
        ("theta_digest", np.uint64),  # after this generation's update
        ("sigma", np.float64),
        ("alpha", np.float64),
        ("shrink", np.float32),  # what the distance from the base model was multiplied with after the update
        # these are rank 0's; exchange includes waiting for the slowest rank
        ("seconds_generate", np.float64),
        ("seconds_score", np.float64),
        ("seconds_perturb", np.float64),
        ("seconds_update", np.float64),
        ("seconds_exchange", np.float64),
        ("seconds_wait", np.float64),  # for rewards, after the last member; NaN in older files
        ("seconds_total", np.float64),
        ("tokens", np.int64),
        ("num_failed", np.int64),
        ("num_score_raised", np.int64),
        ("num_score_timed_out", np.int64),
        ("num_score_died", np.int64),
        ("unix_time", np.float64),
    ]
)

GENERATION_DEFAULTS = {
    **{"fitness_theta": math.nan, "sigma": math.nan, "alpha": math.nan, "shrink": 1.0},
    "seconds_wait": math.nan,
}
"""What stands for columns that files of older versions lack."""

PROFILE_DTYPE = np.dtype(
    [
        ("generation", np.int64),
        ("rank", np.int32),
        ("phase", "S16"),
        ("seconds_start", np.float64),
        ("seconds_end", np.float64),
    ]
)

LOG_ONLY_GENERATIONS = ("generation", "theta_digest", "shrink")
"""Columns of `/generations` in a log-only file."""

JSON_ATTRIBUTES = (
    *("config", "provenance", "tensors", "aliases", "forks", "segments", "generation_segments", "suite_digests"),
    "events",
)
"""Attributes that are stored as JSON; the others are stored as plain texts and numbers."""
