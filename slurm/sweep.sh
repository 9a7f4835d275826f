#!/usr/bin/env bash
#SBATCH --job-name=es_sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --array=0-8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
# All pairs of sigma and alpha, one job of an array for each, each in a run directory of its own. From the project's folder:
#   sbatch slurm/sweep.sh [section.key=value ...]
#   SIGMAS="1e-3 2e-3" ALPHAS="5e-4 1e-3" sbatch --array=0-3 slurm/sweep.sh run.name=pilot es.generations=50
#   esmpi report runs/pilot_*                   # a table that compares them, at any time
# The same command again resumes what is unfinished. CONFIG names another config; see also slurm/common.sh.

cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this script from elsewhere
. slurm/common.sh || { echo "submit this from the project's folder" >&2 && exit 2; }
read -ra sigmas <<<"${SIGMAS:-5e-4 1e-3 2e-3}"
read -ra alphas <<<"${ALPHAS:-2.5e-4 5e-4 1e-3}"
pairs=$((${#sigmas[@]} * ${#alphas[@]}))
task="${SLURM_ARRAY_TASK_ID:-0}"
# some tasks of it alone, as in --array=3, are well
if [ "$task" -ge "$pairs" ] || { [ "${SLURM_ARRAY_TASK_MIN:-}" = 0 ] && [ "${SLURM_ARRAY_TASK_COUNT:-0}" -gt 1 ] &&
  [ "${SLURM_ARRAY_TASK_MAX:-}" = $((SLURM_ARRAY_TASK_COUNT - 1)) ] && [ "$SLURM_ARRAY_TASK_COUNT" != "$pairs" ]; }; then
  echo "sweep.sh: ${#sigmas[@]} sigmas and ${#alphas[@]} alphas are $pairs runs: sbatch --array=0-$((pairs - 1)) ..." >&2
  exit 2
fi
sigma="${sigmas[task / ${#alphas[@]}]}" alpha="${alphas[task % ${#alphas[@]}]}"
name=sweep
for override in "$@"; do
  if [[ $override == run.name=* ]]; then
    name="${override#run.name=}"
  fi
done
train "${CONFIG:-configs/countdown.yaml}" "$@" \
  es.sigma="$sigma" es.alpha="$alpha" run.name="${name}_sigma=${sigma}_alpha=$alpha"
