"""Environments: games and tools that answer a model over several turns. Each module is one that ships with esmpi."""
