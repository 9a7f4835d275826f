"""Shaped fitness as z-scores of each prompt."""

import numpy as np

from esmpi.es.exact_sums import exact_sum, mean_and_std


def shape_by_prompt(rewards: np.ndarray) -> np.ndarray:
    """Return the mean over prompts of (R - mean R) / (std R + 1e-8), (N,) float64; `rewards` is (N, prompts) float64.

    Mean and standard deviation (ddof 0) are those of all members on one prompt, as the advantages of GRPO are those of
    one prompt's completions (arXiv 2402.03300, section 4.1). So prompts count alike, however far their rewards are
    apart. A prompt on which all members have the same reward counts nothing. Where a member has no reward for a prompt,
    which is NaN, the member counts nothing for the prompt, and the prompt counts nothing for the member.
    """
    known = ~np.isnan(rewards)
    shaped = np.zeros(rewards.shape)
    for prompt in range(rewards.shape[1]):
        has = known[:, prompt]
        column = rewards[has, prompt]
        if len(column) and column.min() != column.max():
            mean, std = mean_and_std(column)
            shaped[has, prompt] = (column - mean) / (std + 1e-8)
    return np.array([exact_sum(row) / max(1, count) for row, count in zip(shaped, known.sum(1), strict=True)])
