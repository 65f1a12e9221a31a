#!/usr/bin/env bash
# Makes build/venv, the Python environment of the tests, from tests/requirements.txt; does nothing
# where it is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

requirements=tests/requirements.txt
installed=build/venv/installed-requirements.txt
if ! cmp -s "$requirements" "$installed"; then
  python3 -m venv --clear build/venv
  build/venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$installed"
fi
