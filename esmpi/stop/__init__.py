"""What asks a run to stop: signals, and the end of a Slurm job."""
