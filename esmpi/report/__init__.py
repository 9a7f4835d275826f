"""What a run looks like: a text summary and a plot, from its files alone."""
