#!/usr/bin/env bash
#SBATCH --job-name=es_countdown
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Countdown by ES, one rank per GPU. From the project's folder:
#   sbatch slurm/es_countdown.sh [section.key=value ...]
#   sbatch --nodes=4 slurm/es_countdown.sh es.sigma=2e-3 run.name=sigma2
#   sbatch --ntasks-per-node=1 --cpus-per-task=64 slurm/es_countdown.sh engine.tensor_parallel_size=8
# The same command again resumes the run where it stopped; stopped by the time limit, it requeues itself.
# CONFIG names another config; for other settings of the environment see slurm/common.sh.

# Slurm runs a copy of this script, so its own place says nothing: the job was submitted from the project's folder.
cd "${SLURM_SUBMIT_DIR:-.}"
. slurm/common.sh || { echo "submit this from the project's folder" >&2 && exit 2; }
train "${CONFIG:-configs/countdown.yaml}" "$@"
