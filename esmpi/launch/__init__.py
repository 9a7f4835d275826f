"""What comes before a run: the dry run, `esmpi doctor`, and jobs on Slurm by submitit."""
