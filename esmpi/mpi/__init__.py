"""Ranks: who started them, how they find one another, and what they exchange."""
