"""What mypy says of the client, and of programs that use it."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT

PYTHON_CLIENT = ROOT / "client" / "python"


def _mypy(installed, folder, *arguments):
    output = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--no-error-summary",
         f"--config-file={PYTHON_CLIENT / 'pyproject.toml'}", *arguments],
        cwd=folder, env={**os.environ, "MYPYPATH": str(installed)}, capture_output=True, text=True,
        check=False)
    return output.returncode, output.stdout + output.stderr


def test_the_package_is_typed_throughout(installed, tmp_path):
    status, output = _mypy(installed, tmp_path, "--package=tidal_client")
    assert (status, output) == (0, "")


@pytest.mark.parametrize("package", ["tidal_client", "tidal/inference/v1"])
def test_type_checkers_are_told_that_packages_are_typed(installed, package):
    assert (installed / package / "py.typed").is_file()


def test_programs_that_use_it_are_checked(installed, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("from tidal_client import Client, Sampling\n\n"
                       "Client().generate('a', sampling=Sampling(temperature='hot'))\n",
                       encoding="utf-8")
    examples = sorted(map(str, (PYTHON_CLIENT / "examples").glob("*.py")))
    assert examples
    status, output = _mypy(installed, tmp_path, str(program), *examples)
    assert status == 1
    (error,) = output.splitlines()
    assert error.startswith("program.py:3: error:") and '"temperature"' in error, output
