#!/usr/bin/env bash
#SBATCH --job-name=es_sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --array=0
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
# A sweep: each task of the job array is one of the runs that `esmpi sweep` lists. From the project's folder:
#   esmpi sweep configs/countdown.yaml es.sigma=5e-4,1e-3,2e-3 --seeds 3 --dry-run          # lists 9 runs
#   sbatch --array=0-8 slurm/sweep.sh configs/countdown.yaml es.sigma=5e-4,1e-3,2e-3 --seeds 3
#   esmpi sweep configs/countdown.yaml es.sigma=5e-4,1e-3,2e-3 --seeds 3 --show             # table and plot, at any time
# The same command again resumes what is unfinished. `esmpi sweep --slurm` does the same without a script.
# For settings of the environment see slurm/common.sh.

cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this script from elsewhere
. slurm/common.sh || { echo "submit this from the project's folder" >&2 && exit 2; }
: "${1:?usage: sbatch --array=0-8 slurm/sweep.sh CONFIG [arguments of esmpi sweep]}"
config=$("${WRAP[@]}" python -m esmpi sweep "$@" --write-config "${SLURM_ARRAY_TASK_ID:-0}")
train "$config"
