"""What a run leaves behind: the run file, snapshots, replay, and exported models (see docs/run-files.md)."""
