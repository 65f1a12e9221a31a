#!/usr/bin/env bash
# Runs one file of these tests against the programs in $TIDAL_BIN_DIR. Exits with 77 where it needs
# a renderer of kustomizations and there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

python=build/venv/bin/python
if [[ ! -x $python ]]; then
  echo "No $python: make it with scripts/make_venv.sh" >&2
  exit 1
fi
if [[ ! -x ${TIDAL_BIN_DIR:?must name the folder of tidal-server}/tidal-server ]]; then
  echo "No tidal-server in TIDAL_BIN_DIR=$TIDAL_BIN_DIR: build it first" >&2
  exit 1
fi
if [[ $1 == test_overlays.py ]] && ! "$python" tests/deploy/kubernetes/renderer.py; then exit 77; fi
exec "$python" -m pytest -q -p no:cacheprovider "tests/deploy/kubernetes/$1" "${@:2}"
