"""Ways to shape fitness, one module each: `shape(fitness)` takes and returns (N,) float64, higher is better."""
