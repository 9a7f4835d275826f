#!/usr/bin/env bash
#SBATCH --job-name=es_multiplication
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# 3-digit multiplication by ES, one rank per GPU. From the project's folder:
#   sbatch slurm/es_multiplication.sh [section.key=value ...]
# The same command again resumes the run where it stopped; stopped by the time limit, it requeues itself.
# CONFIG names another config; for other settings of the environment see slurm/common.sh.

cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this script from elsewhere
. slurm/common.sh || { echo "submit this from the project's folder" >&2 && exit 2; }
train "${CONFIG:-configs/paper/multiplication.yaml}" "$@"
