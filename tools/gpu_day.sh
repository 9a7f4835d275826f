#!/usr/bin/env bash
# Find out all that can be found out in ten minutes on a GPU, the most telling first. Safe to cut off at any moment.
#   bash tools/gpu_day.sh wheels [3.12]     beforehand, with internet: the packages that a GPU machine may lack, for its Python
#   bash tools/gpu_day.sh [options]         on the GPU machine, without internet; see `--help`
# With a Python that has vLLM, its parts run, too: bash tools/gpu_day.sh --parts vllm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheels=${GPU_DAY_WHEELS:-wheels} python=${PYTHON:-python3}

download() { # download VERSION_OF_PYTHON FOLDER PACKAGE...
  "$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$1" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$2" "${@:3}"
}

if [ "${1:-}" = wheels ]; then
  download "${2:-3.12}" "$wheels" msgspec ruamel.yaml
  download "${2:-3.12}" "$wheels/numpy" 'numpy<2.4' # for a numba that refuses the machine's NumPy
  ls -l "$wheels" "$wheels/numpy"
  exit
fi

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
unpack() { # the wheels of a folder, without pip, which the machine may lack; one that does not fit is left out
  local wheel
  for wheel in "$1"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$site" || echo "$wheel cannot be used" >&2
  done
}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
if ! "$python" -c 'import msgspec, ruamel.yaml' 2>/dev/null && compgen -G "$wheels/*.whl" >/dev/null; then
  unpack "$wheels"
  export PYTHONPATH="$PWD:$site:$PYTHONPATH"
fi
if ! "$python" -c 'import numba' 2>/dev/null && compgen -G "$wheels/numpy/*.whl" >/dev/null; then
  unpack "$wheels/numpy"
  export PYTHONPATH="$PWD:$site:$PYTHONPATH"
fi
"$python" tools/gpu_day.py "$@" &
child=$!
trap 'kill -TERM "$child" 2>/dev/null && wait "$child"; rm -rf "$site"' EXIT
trap 'exit 143' TERM INT HUP
wait "$child"
