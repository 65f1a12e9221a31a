#!/usr/bin/env bash
# Runs the tests of client/python against the programs in $TIDAL_BIN_DIR.
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
exec "$python" -m pytest -q -p no:cacheprovider tests/client/python "$@"
