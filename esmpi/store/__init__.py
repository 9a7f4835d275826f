"""What a run leaves behind: the run file, snapshots, replay, and exported models (docs/run-files.md). Knows no engine."""
