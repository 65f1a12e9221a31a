"""Renders a kustomization with kubectl or kustomize, whichever is there and new enough.

As a program: fails, and says why, where there is none.
"""

import json
import re
import shutil
import subprocess
import sys

import yaml

# Components came with 3.7, labels without selectors with 4.1.
OLDEST = (4, 1)


def _version_of(text):
    match = re.search(r"v?(\d+)\.(\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def find_renderer():
    """The command that takes a folder, or None."""
    if shutil.which("kustomize"):
        output = subprocess.run(["kustomize", "version"], capture_output=True, text=True,
                                check=False)
        if _version_of(output.stdout) >= OLDEST:
            return ["kustomize", "build"]
    if shutil.which("kubectl"):
        output = subprocess.run(["kubectl", "version", "--client", "--output=json"],
                                capture_output=True, text=True, check=False)
        # kubectl 1.20 and older have kustomize 2.0.3, and do not tell.
        if output.returncode == 0:
            version = json.loads(output.stdout).get("kustomizeVersion", "")
            if _version_of(version) >= OLDEST:
                return ["kubectl", "kustomize"]
    return None


def render(folder):
    """The objects of a kustomization, as dictionaries."""
    output = subprocess.run([*find_renderer(), str(folder)], capture_output=True, text=True,
                            check=False)
    assert output.returncode == 0, output.stderr
    assert output.stderr == "", output.stderr  # warnings of what is deprecated
    return list(yaml.safe_load_all(output.stdout))


if __name__ == "__main__":
    if find_renderer() is None:
        print("Neither kustomize nor a kubectl with kustomize"
              f" {OLDEST[0]}.{OLDEST[1]} or later is installed: overlays cannot be rendered")
        sys.exit(1)
