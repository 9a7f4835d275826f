# shellcheck shell=bash
# Sourced by the job scripts beside this one: `train CONFIG [section.key=value ...]` runs esmpi on all ranks of the job,
# `evaluate RUN [options]` runs esmpi eval.
# Environment, all optional:
#   VENV            environment with esmpi (default: the active one, else .venv)
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

case "${REQUEUE:=yes}" in
yes | no | always) ;;
*)
  echo "REQUEUE=$REQUEUE: yes, no or always" >&2
  exit "$REFUSED"
  ;;
esac
if [ -z "${VENV:-}" ] && [ -z "${VIRTUAL_ENV:-}" ] && [ -e .venv/bin/activate ]; then
  VENV=.venv
fi
if [ -n "${VENV:-}" ]; then
  if [ ! -e "$VENV/bin/activate" ]; then
    echo "VENV=$VENV is no Python environment: it has no bin/activate" >&2
    exit "$REFUSED"
  fi
  # shellcheck disable=SC1091  # made by the user
  . "$VENV/bin/activate"
fi
# Compute nodes seldom reach the internet: what is not in the local cache is an error at once, not after a time-out.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}"
# Since Slurm 22.05 srun no longer takes over what sbatch got.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi
# Where jobs are submitted with --export=NONE, srun would keep what is set here from the ranks.
export SLURM_EXPORT_ENV=ALL
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
  local plan directory before=0 launcher timer='' left code=0 stop=''
  trap 'stop=yes' USR1 TERM
  announce
  left=$(seconds_left)
  if [ "$left" ]; then # for run.stop_before_limit: in a container there is no squeue
    export SLURM_JOB_END_TIME="${SLURM_JOB_END_TIME:-$(($(date +%s) + left))}"
  fi
  plan=$("${WRAP[@]}" python -m esmpi run "$1" --dry-run --ranks "${SLURM_NTASKS:-1}" "${@:2}")
  echo "$plan"
  directory=$(sed -n 's/^# run directory *//p' <<<"$plan")
  if [ "$REQUEUE" = always ]; then
    before=$(committed "$directory")
  fi
  if [ "$stop" ]; then # while the lines above ran
    if [ "${left:-900}" -lt 900 ] && [ "${SLURM_RESTART_COUNT:-0}" -ge 3 ]; then
      echo "asked to stop at once, as before: --time has to be longer than the lead of --signal" >&2
      return "$STOPPED"
    fi
    requeue "asked to stop before the ranks were there"
    return "$STOPPED"
  fi
  # In the background, because bash runs traps between commands only. A signal to this script (sbatch
  # --signal=B:USR1@600) is passed on to the ranks. Without `B:` Slurm itself sends it to them, if they are there yet.
  "${LAUNCH[@]}" "${WRAP[@]}" python -m esmpi.run "$@" &
  launcher=$!
  trap stop_ranks USR1 TERM
  if [ "$stop" ]; then # between the two lines above
    stop_ranks
  fi
  wait "$launcher" || code=$?
  while kill -0 "$launcher" 2>/dev/null; do # it was a trap that ended the wait
    wait "$launcher" || true
  done
  code=0
  wait "$launcher" || code=$?
  trap '' USR1 TERM
  if [ "$timer" ]; then
    kill "$timer" 2>/dev/null || true
  fi
  if [ "$code" = 0 ] || [ "$code" = "$REFUSED" ]; then
    return "$code"
  fi
  # a signal that comes before the ranks can take it ends them, and so does a second one
  if [ "$code" = "$STOPPED" ] || [ "$stop" ]; then
    requeue "stopped before its end"
    return "$STOPPED"
  fi
  if [ "$REQUEUE" = always ] && [ "$(committed "$directory")" -gt "$before" ]; then
    requeue "ranks failed (exit code $code), but not before a new generation"
  fi
  echo "ranks failed (exit code $code): not put back into the queue; rerun the same command to resume"
  return "$code"
}

# For the trap: ask the ranks to end their generation, and see to it that the job is requeued before its time is over.
# It has the variables of train.
stop_ranks() {
  kill -USR1 "$launcher" 2>/dev/null || true
  if [ ! "$timer" ]; then
    stop=yes
    abandon &
    timer=$!
  fi
}

# When most of the time that is left has passed, requeue the job with what is committed.
abandon() {
  local left
  trap '' USR1
  left=$(seconds_left)
  if [ "$left" ]; then
    trap 'kill "$!"; exit' TERM
    sleep $((left * 8 / 10)) &
    wait "$!"
    requeue "the generation does not end in time"
  fi
}

# Print the seconds until the job's time limit; nothing without one, or if Slurm does not say.
seconds_left() {
  if [ "${SLURM_JOB_ID:-}" ]; then
    squeue --noheader --jobs "$(job_id)" --format %L 2>/dev/null | awk '/^[0-9]/ {
      n = split($1, parts, "-"); m = split(parts[n], clock, ":"); seconds = 0
      for (i = 1; i <= m; i++) seconds = seconds * 60 + clock[i]
      print (n > 1 ? parts[1] * 86400 : 0) + seconds }' || true
  fi
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
  local state wait_s
  if [ "$REQUEUE" = no ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    return
  fi
  for wait_s in 2 5 10 20; do # Slurm's controller may be busy, or away for a moment
    if state=$(squeue --noheader --jobs "$(job_id)" --format %T) && [ "$state" != RUNNING ]; then
      return
    fi
    echo "$1: back into the queue"
    if scontrol requeue "$(job_id)"; then
      sleep 60 # Slurm ends this script
      return
    fi
    sleep "$wait_s"
  done
  echo "this job cannot be put back into the queue; rerun the same command to resume"
}
