"""The base model: its folder, its tensors, and copies of it on a node's own disk."""
