#!/usr/bin/env python3
"""Proves the table of who may include whom, for #include lines and for links of CMake targets.

    scripts/check_includes.py [--root DIRECTORY]

Prints each offender as file:line: what is wrong, and fails where there is one. A folder's rule holds
for what lies under it, unless a folder further down has its own. Targets are found in CMakeLists.txt
files: a target belongs to the folder whose file defines it, and may link what that folder may include.
"""

import argparse
import pathlib
import re
import sys
from typing import NamedTuple

GENERATED_PROTO = ("tidal/", "google/rpc/", "grpc/health/")
GRPC_AND_PROTOBUF = ("grpc/", "grpcpp/", "grpc++/", "google/", "tidal/")
PROMETHEUS = ("prometheus/",)
CUDA = ("cuda", "cublas", "nccl", "cooperative_groups")


class Rule(NamedTuple):
    folders: tuple  # of ours, that may be included besides the folder itself
    proto: bool = False  # code generated from proto/
    forbidden: tuple = ()  # prefixes of includes of others
    forbidden_targets: tuple = ()  # prefixes of targets of others


_ENGINE_FORBIDDEN = {
    "forbidden": GRPC_AND_PROTOBUF + PROMETHEUS + CUDA,
    "forbidden_targets": ("gRPC::", "protobuf::", "prometheus-cpp::", "CUDA::"),
}
_NO_CUDA = {"forbidden": CUDA, "forbidden_targets": ("CUDA::",)}

RULES = {
    "engine": Rule(("engine",), **_ENGINE_FORBIDDEN),
    "engine/backend": Rule((), **_ENGINE_FORBIDDEN),
    "engine/json": Rule(("engine/backend",), **_ENGINE_FORBIDDEN),
    "engine/checkpoint": Rule(("engine/json", "engine/backend"), **_ENGINE_FORBIDDEN),
    "engine/tokenizer": Rule(("engine/json", "engine/backend"), **_ENGINE_FORBIDDEN),
    "engine/cpu": Rule(("engine/backend",), **_ENGINE_FORBIDDEN),
    "cuda": Rule(("engine/backend",),
                 forbidden=GRPC_AND_PROTOBUF + PROMETHEUS,
                 forbidden_targets=("gRPC::", "protobuf::", "prometheus-cpp::")),
    "proto": Rule((), proto=True, **_NO_CUDA),
    "server": Rule(("engine",), proto=True, **_NO_CUDA),
    "client": Rule((), proto=True, **_NO_CUDA),
    "tools": Rule(("engine",), **_NO_CUDA),
    "tests": Rule(("engine", "server", "client", "tools", "cuda", "tests"), proto=True),
}
FOLDERS = ("engine", "cuda", "server", "client", "tools", "tests", "proto", "models", "scripts")
SOURCE_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
DEFINING_COMMANDS = {"add_library", "add_executable", "tidal_library", "tidal_program", "tidal_test",
                     "tidal_proto_library", "tidal_fuzz_target"}
LINKING_COMMANDS = {"target_link_libraries", "tidal_library", "tidal_program", "tidal_test",
                    "tidal_fuzz_target"}
# Arguments of the linking commands that end a list of links, and those that begin one.
NO_LINK_KEYWORDS = {"SOURCES", "LABELS", "TIMEOUT", "DATA"}
LINK_KEYWORDS = {"LINK", "PUBLIC", "PRIVATE", "INTERFACE"}
# Targets that any folder may link: they carry compiler options alone.
OPTION_TARGETS = {"tidal_warnings"}


def is_under(path, folder):
    return path == folder or path.startswith(folder + "/")


def folder_with_rule(path):
    """The deepest folder of RULES that `path` lies in, or None."""
    folders = [folder for folder in RULES if is_under(path, folder)]
    return max(folders, key=len, default=None)


def may_use(folder, other):
    """Whether code of `folder` may use the folder or file `other` of ours."""
    if other == "proto" or is_under(other, "proto"):
        return RULES[folder].proto
    # A folder may use itself; what it holds that has a rule of its own needs to be in the table.
    own = folder_with_rule(other) == folder
    return own or any(is_under(other, allowed) for allowed in RULES[folder].folders)


def include_offence(folder, bracket, path):
    """Why `folder` may not include `path`, or None."""
    rule = RULES[folder]
    if path.startswith(GENERATED_PROTO):
        return None if rule.proto else f"{folder}/ may not include the generated {path}"
    if path.split("/")[0] in FOLDERS and "/" in path:
        if bracket == "<":
            return f"{path} is ours: include it with quotes"
        return None if may_use(folder, path) else f"{folder}/ may not include {path}"
    if bracket == '"' and ("/" not in path or path.startswith(".")):
        return f"include {path} by its path from the root of the repository"
    if path.startswith(rule.forbidden):
        return f"{folder}/ may not include {path}"
    return None


def files_under_rules(root, pattern):
    """(path, name from the root) of the files that match, in folders with a rule."""
    for top in sorted({folder.split("/")[0] for folder in RULES}):
        for path in sorted((root / top).rglob(pattern)):
            yield path, path.relative_to(root).as_posix()


def check_sources(root):
    for path, name in files_under_rules(root, "*"):
        if path.suffix not in SOURCE_SUFFIXES:
            continue
        folder = folder_with_rule(name)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            match = INCLUDE.match(line)
            offence = match and include_offence(folder, match[1], match[2])
            if offence:
                yield f"{name}:{number}: {offence}"


class Command(NamedTuple):
    name: str
    arguments: list  # (argument, line)


def commands_of(text):
    """The commands of a CMakeLists.txt file; comments and nested parentheses are skipped."""
    commands, current, depth, name = [], None, 0, None
    token = re.compile(r'#[^\n]*|"(?:\\.|[^"\\])*"|[()]|[^\s()"#]+|\n')
    line = 1
    for match in token.finditer(text):
        word = match[0]
        if word == "(":
            depth += 1
            if depth == 1:
                current = Command(name, [])
        elif word == ")":
            depth -= 1
            if depth == 0:
                commands.append(current)
        elif not word.startswith("#") and word != "\n":
            if depth == 0:
                name = word.lower()
            else:
                current.arguments.append((word.strip('"'), line))
        line += word.count("\n")
    return commands


def links_of(command):
    """(target, line) of each target that a linking command links."""
    in_links = command.name == "target_link_libraries"
    for argument, line in command.arguments[1:]:
        if argument in NO_LINK_KEYWORDS:
            in_links = False
        elif argument in LINK_KEYWORDS:
            in_links = True
        elif in_links:
            yield argument, line


def read_cmake_files(root):
    """[(file name, its directory, commands)] of the CMakeLists.txt files of folders with a rule."""
    return [(name, name.rpartition("/")[0], commands_of(path.read_text(encoding="utf-8")))
            for path, name in files_under_rules(root, "CMakeLists.txt")]


def directories_of_targets(files):
    """Target -> the directory of the file that defines it. The headers of engine/backend/ are a
    target of engine/CMakeLists.txt: its include directories tell no folder, so it is named here."""
    directories = {command.arguments[0][0]: directory
                   for _, directory, commands in files
                   for command in commands
                   if command.name in DEFINING_COMMANDS and command.arguments}
    if "tidal_backend" in directories:
        directories["tidal_backend"] = "engine/backend"
    return directories


def link_offence(folder, target, directories):
    """Why targets of `folder` may not link `target`, or None."""
    if target in OPTION_TARGETS or "$" in target:
        return None
    if target in directories:
        other = directories[target]
        return None if may_use(folder, other) else f"{folder}/ may not link {target} of {other}/"
    if target.startswith("tidal_"):
        return f"{target} is defined in no CMakeLists.txt"
    if target.startswith(RULES[folder].forbidden_targets):
        return f"{folder}/ may not link {target}"
    return None


def check_links(root):
    files = read_cmake_files(root)
    directories = directories_of_targets(files)
    for name, directory, commands in files:
        for command in commands:
            if command.name not in LINKING_COMMANDS or not command.arguments:
                continue
            owner = directories.get(command.arguments[0][0], directory)
            folder = folder_with_rule(owner)
            for target, line in links_of(command):
                offence = link_offence(folder, target, directories)
                if offence:
                    yield f"{name}:{line}: {offence}"


def main():
    parser = argparse.ArgumentParser(description="Check #include lines and CMake links.")
    parser.add_argument("--root", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    offences = [*check_sources(root), *check_links(root)]
    print("\n".join(offences) or "check_includes.py: every include and link is allowed")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
