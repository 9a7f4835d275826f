"""What a run leaves behind: the run file, snapshots, replay, and exported models (FORMAT.md). Knows no engine."""
