"""What asks a run to stop: signals, and the end of a Slurm job."""

STOPPED = 75
"""Exit code of a run that was asked to stop before its last generation: EX_TEMPFAIL of sysexits.h, "try again later".

Not 0, so that a job that waits for the run's end (`sbatch --dependency=afterok:ID`) does not start on half a run, and
a batch script knows when to requeue itself."""
