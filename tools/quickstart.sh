#!/usr/bin/env bash
# Set up esmpi, tune the embedded tiny model on Countdown with two MPI ranks, and show what came of it.
#   bash tools/quickstart.sh [section.key=value ...]      such as es.generations=12 run.seed=1
# The same command again resumes the run where it stopped; run.name=other starts another one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/setup.sh
set_up mpich,report

# the resolved config tells where the run is, whatever the overrides say
run=$(esmpi run configs/quickstart.yaml --dry-run "$@" | sed -n 's/^# run directory *//p')
[ -n "$run" ] || exit 2
mpiexec -n 2 python -m esmpi.run configs/quickstart.yaml "$@"
echo
esmpi report "$run"
