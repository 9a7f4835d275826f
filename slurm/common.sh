# shellcheck shell=bash
# Sourced by the job scripts beside this one: `train CONFIG [section.key=value ...]` runs esmpi on all ranks of the job,
# `evaluate RUN [options]` runs esmpi eval.
# Environment, all optional:
#   VENV            environment with esmpi (default: .venv, unless one is active)
#   SLURM_MPI_TYPE  how srun starts MPI: pmi2 for MPICH, pmix for Open MPI (default: the site's)
#   REQUEUE         which runs are put back into the queue before their end: `yes`, the default, those that were asked
#                   to stop; `no`, none; `always`, also those with a rank that failed or was killed (out of memory),
#                   if a generation was committed since the job's start: a fault that comes at once again ends the job
# A script may set before it calls one of them:
#   LAUNCH=(...)    what starts the ranks (default: srun); such as (mpirun) of the MPI that esmpi uses
#   WRAP=(...)      what each rank runs in; such as (apptainer exec --nv esmpi.sif)
set -euo pipefail

# exit codes of a run: asked to stop before its last generation; an error that only the user can mend
STOPPED=75 REFUSED=2

if [ -z "${VIRTUAL_ENV:-}" ] && [ -e "${VENV:=.venv}/bin/activate" ]; then
  # shellcheck disable=SC1091  # made by the user
  . "$VENV/bin/activate"
fi
# Compute nodes seldom reach the internet: what is not in the local cache is an error at once, not after a time-out.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}"
# Since Slurm 22.05 srun no longer takes over what sbatch got.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi
LAUNCH=(srun --kill-on-bad-exit=1)
WRAP=()

# Of one task of an array, SLURM_JOB_ID may be the number of the whole array: Slurm would requeue all of its tasks.
job_id() {
  echo "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}" | grep . || echo "${SLURM_JOB_ID:-none}"
}

announce() {
  echo "job $(job_id), start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date +%FT%T): ${SLURM_NTASKS:-1} ranks on" \
    "${SLURM_JOB_NODELIST:-$(hostname)}, ${SLURM_CPUS_PER_TASK:-1} cores and ${SLURM_GPUS_ON_NODE:-0} GPUs a node;" \
    "$(command -v python)"
}

evaluate() {
  announce
  echo "esmpi eval $*"
  "${LAUNCH[@]}" "${WRAP[@]}" python -m esmpi eval "$@"
}

train() {
  local plan directory before=0 launcher code=0 stop=
  trap 'stop=yes' USR1 TERM
  announce
  plan=$("${WRAP[@]}" python -m esmpi run "$1" --dry-run --ranks "${SLURM_NTASKS:-1}" "${@:2}")
  echo "$plan"
  directory=$(sed -n 's/^# run directory *//p' <<<"$plan")
  if [ "${REQUEUE:-yes}" = always ]; then
    before=$(committed "$directory")
  fi
  # In the background, because bash runs traps between commands only. A signal to this script (sbatch
  # --signal=B:USR1@600) is passed on to the ranks. Without `B:` Slurm itself sends it to them, if they are there yet.
  "${LAUNCH[@]}" "${WRAP[@]}" python -m esmpi.run "$@" &
  launcher=$!
  # shellcheck disable=SC2064  # this process, now
  trap "kill -USR1 $launcher" USR1 TERM
  if [ "$stop" ]; then # while the lines above ran
    kill -USR1 "$launcher"
  fi
  wait "$launcher" || code=$?
  while kill -0 "$launcher" 2>/dev/null; do # it was a trap that ended the wait
    wait "$launcher" || true
  done
  code=0
  wait "$launcher" || code=$?
  trap '' USR1 TERM
  if [ "$code" = "$STOPPED" ]; then
    requeue "stopped before its end"
  elif [ "$code" != 0 ] && [ "$code" != "$REFUSED" ]; then
    if [ "${REQUEUE:-yes}" = always ] && [ "$(committed "$directory")" -gt "$before" ]; then
      requeue "ranks failed (exit code $code), but not before a new generation"
    fi
    echo "ranks failed (exit code $code): not put back into the queue; the same command goes on"
  fi
  return "$code"
}

# Print how many generations a run has; 0 if it has not begun.
committed() {
  local program='
import sys
from esmpi.store.run_file import RunFile, run_file_path
print(RunFile.open(run_file_path(sys.argv[1])).num_generations)'
  "${WRAP[@]}" python -c "$program" "$1" 2>/dev/null || echo 0
}

# Put this job back into the queue, unless it is being cancelled or its time is over: then it is no longer RUNNING.
requeue() {
  if [ "${REQUEUE:-yes}" != no ] && [ "$(squeue --noheader --jobs "$(job_id)" --format %T)" = RUNNING ]; then
    echo "$1: back into the queue"
    scontrol requeue "$(job_id)"
    sleep 60 # Slurm ends this script
  fi
}
