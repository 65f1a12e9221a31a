#!/usr/bin/env bash
# Runs tests of deploy/, or one file of them, against the programs in $TIDAL_BIN_DIR.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=build/venv/bin/python
if [[ ! -x $python ]]; then
  echo "No $python: make it with scripts/make_venv.sh" >&2
  exit 1
fi
for program in prometheus promtool; do
  if ! command -v "$program" >/dev/null; then
    echo "No $program: install it with scripts/install_packages.sh test" >&2
    exit 1
  fi
done
exec "$python" -m pytest -q -p no:cacheprovider "$@"
