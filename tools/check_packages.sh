#!/usr/bin/env bash
# Build the wheel and the source distribution, and use each in an empty environment of each Python, outside the clone.
#   bash tools/check_packages.sh [PYTHON ...]      by default those of python3.11, python3.12 and python3.13 that are there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. tools/setup.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pythons=("$@")
if [ $# -eq 0 ]; then
  for python in python3.11 python3.12 python3.13; do
    if "$python" -c '' 2>/dev/null; then pythons+=("$python"); fi
  done
fi
if [ ${#pythons[@]} -eq 0 ]; then
  echo "no Python found: name those to try, such as: bash tools/check_packages.sh python3" >&2
  exit 2
fi

"${pythons[0]}" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build
# from a copy: a build leaves folders behind
git archive --prefix=source/ HEAD | tar -x -C "$work"
"$work/build/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 ||
  { tail -20 "$work/build.log" >&2; exit 1; }

for python in "${pythons[@]}"; do
  for package in "$work"/dist/*.whl "$work"/dist/*.tar.gz; do
    name="$("$python" -V), ${package##*/}"
    rm -rf "$work/venv" "$work/use"
    "$python" -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$TORCH" "${package}[mpich,report]"
    mkdir "$work/use"
    (
      cd "$work/use"
      export PATH="$work/venv/bin:$PATH"
      esmpi --version
      esmpi init mine >/dev/null
      cd mine
      tiny=(model.path=esmpi:tiny_countdown model.dtype=float32 engine.kind=hf task.chat_format=none es.generations=1)
      esmpi run own.yaml "${tiny[@]}" --dry-run >/dev/null
      mpiexec -n 2 python -m esmpi.run own.yaml "${tiny[@]}" >run.log 2>&1 || { tail -20 run.log >&2; exit 1; }
      esmpi replay runs/own --verify
      esmpi report runs/own >/dev/null
    )
    echo "works: $name"
  done
done
