#!/usr/bin/env bash
# The benchmark at LLaDA-8B's shape on one GPU of 40 GB or more, without a network, 8 minutes at most.
#
#   bench/gpu.sh [WHEELS] [options of bench/measure.py]
#   bench/gpu.sh wheels --out gpu                              # table, gpu.json, gpu.md
#   bench/gpu.sh --device cpu --shape tiny --out build/tiny    # that the script runs, in seconds
#
# WHEELS: a folder of wheels for what this Python lacks (docs/benchmarks.md says how to make it); they are
# installed into a folder of their own, gone afterwards. PYTHON: the interpreter, python3 unless set.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
wheels=
if [[ $# -gt 0 && $1 != -* ]]; then
  wheels=$1
  shift
fi

export PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
needed=$("$python" "$here/bench/needed.py")
if [[ -n $needed ]]; then
  mapfile -t lacking <<<"$needed"
  if [[ ! -d $wheels ]]; then
    echo "error: this Python lacks ${lacking[*]}; give a folder of wheels: bench/gpu.sh WHEELS ..." >&2
    exit 2
  fi
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-cache-dir --no-compile --disable-pip-version-check \
    --find-links "$wheels" --target "$site" "${lacking[@]}" >&2
  export PYTHONPATH="$site:$PYTHONPATH"
fi
"$python" "$here/bench/measure.py" --device cuda "$@"
