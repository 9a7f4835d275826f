#!/usr/bin/env bash
#SBATCH --job-name=es_countdown
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
# Countdown by ES, one rank per GPU. From the project's folder:
#   sbatch slurm/es_countdown.sh [section.key=value ...]
#   sbatch --nodes=4 slurm/es_countdown.sh es.sigma=2e-3 run.name=sigma2
#   sbatch --ntasks-per-node=1 --cpus-per-task=64 slurm/es_countdown.sh engine.tensor_parallel_size=8
# The same command again goes on where the run stopped. Environment:
#   CONFIG      another config (default: configs/countdown.yaml)
#   SLURM_MPI_TYPE  how srun starts MPI: pmi2 for MPICH, pmix for Open MPI (default: the site's)
set -euo pipefail
# Slurm runs a copy of this script, so its own place says nothing: the job was submitted from the project's folder.
cd "${SLURM_SUBMIT_DIR:-.}"
if [ -z "${VIRTUAL_ENV:-}" ] && [ -e .venv/bin/activate ]; then
  # shellcheck source=/dev/null
  . .venv/bin/activate
fi
config="${CONFIG:-configs/countdown.yaml}"
# compute nodes seldom reach the internet: what is not in the local cache is an error at once, not after a time-out
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

esmpi run "$config" --dry-run --ranks "${SLURM_NTASKS:-1}" "$@"
srun --kill-on-bad-exit=1 python -m esmpi.run "$config" "$@"
