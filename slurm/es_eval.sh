#!/usr/bin/env bash
#SBATCH --job-name=es_eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Evaluate a run at any generation, or any model, one rank per GPU. From the project's folder:
#   sbatch slurm/es_eval.sh runs/countdown --best
#   sbatch slurm/es_eval.sh runs/countdown --suite wide data.num_eval=10000 eval.num_samples=4 eval.temperature=0.7
#   sbatch slurm/es_eval.sh configs/countdown.yaml --out base model.path=any/model
#   sbatch --dependency=afterok:ID slurm/es_eval.sh ...      after the run's own job has come to its end
# While a run is going, its directory is its own: give --out. For settings of the environment see slurm/common.sh.

cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this script from elsewhere
. slurm/common.sh || { echo "submit this from the project's folder" >&2 && exit 2; }
evaluate "${@:?usage: sbatch slurm/es_eval.sh RUN_OR_CONFIG [options of esmpi eval]}"
