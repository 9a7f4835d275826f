"""What a run leaves behind: the run file, replay from it, and exported models. Knows no engine."""
