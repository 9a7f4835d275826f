"""Theta and the live weights: views of an engine's tensors, and the noise that is added to them."""
