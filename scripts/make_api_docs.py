#!/usr/bin/env python3
"""Writes docs/api.md from the comments of proto/ and from the examples.

  build/venv/bin/python scripts/make_api_docs.py [--check]

--check: writes nothing, and fails where the file is not what would be written. Needs grpcio-tools
(tests/requirements.txt).
"""

import argparse
import pathlib
import re
import sys
import tempfile

import grpc_tools
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "api.md"
API = pathlib.Path("tidal", "inference", "v1")
FILES = ["inference", "attention", "model", "admin"]
PACKAGE = ".tidal.inference.v1."
LINE_WIDTH = 118

Field = descriptor_pb2.FieldDescriptorProto
# Numbers of fields in descriptor.proto, of which the paths of source locations are made.
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM = 2, 3, 4
SERVICE_METHOD = ENUM_VALUE = 2

HEAD = """\
# The API

<!-- Written by scripts/make_api_docs.py from proto/ and the examples: change those. -->

gRPC, package `tidal.inference.v1`. Sources are in `proto/tidal/inference/v1/`; the server answers reflection, except
where it asks for tokens. Fields that are `optional` and left out take the server's default. How errors, health and
shutdown behave is in [serving.md](serving.md).

## Calls

### From Python

`pip install ./client/python` ([its README](../client/python/README.md)); `client/python/examples/stream.py`:

```python
{python}```

### From C++

The CMake target `tidal_client_lib` ([client.md](client.md), The library); `client/examples/stream.cc`:

```cpp
{cpp}```

### With grpcurl

```sh
grpcurl -plaintext localhost:50051 list
grpcurl -plaintext -d '{{"text": "Once upon a time", "stopping": {{"max_new_tokens": 16}}}}' \\
    localhost:50051 tidal.inference.v1.InferenceService/Generate
grpcurl -plaintext -d '{{"text": "Once upon a time", "sampling": {{"temperature": 0}}, "attention": {{"mode": "ATTENTION_MODE_TIDAL", "token_budget": 128}}}}' \\
    localhost:50051 tidal.inference.v1.InferenceService/GenerateStream
grpcurl -plaintext -d '{{"text": "Hello"}}' localhost:50051 tidal.inference.v1.InferenceService/Tokenize
grpcurl -plaintext localhost:50051 tidal.inference.v1.ModelService/GetModelInfo
grpcurl -plaintext -d '{{"service": "readiness"}}' localhost:50051 grpc.health.v1.Health/Check
grpcurl -cacert ca.pem -H 'authorization: Bearer TOKEN' -import-path proto -proto tidal/inference/v1/model.proto \\
    HOST:50051 tidal.inference.v1.ModelService/GetModelInfo
```

"""


class ApiFile:
    """One .proto file, and the comments in it by their paths."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self._locations = {tuple(one.path): one for one in descriptor.source_code_info.location}

    def comment(self, path):
        location = self._locations.get(path)
        return location.leading_comments if location is not None else ""


def read_files():
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "api"
        well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
        arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", "--include_source_info",
                     f"--descriptor_set_out={output}",
                     *(str(ROOT / "proto" / API / f"{name}.proto") for name in FILES)]
        if protoc.main(arguments) != 0:
            sys.exit("make_api_docs.py: protoc failed")
        files = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file
    by_name = {one.name: one for one in files}
    return [ApiFile(by_name[str(API / f"{name}.proto")]) for name in FILES]


# --- comments ------------------------------------------------------------------------------------


def wrap(text):
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > LINE_WIDTH:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".lstrip()
    return "\n".join([*lines, line])


def paragraphs(comment):
    """A comment as Markdown: text flows, and what is indented in it stays as it is."""
    blocks = []
    for line in comment.rstrip().split("\n"):
        line = line.removeprefix(" ").rstrip()
        kind = "code" if line.startswith("  ") else "text" if line else "gap"
        if blocks and blocks[-1][0] == kind:
            blocks[-1][1].append(line)
        else:
            blocks.append((kind, [line]))
    made = []
    for kind, lines in blocks:
        if kind == "text":
            made.append(wrap(escape(" ".join(lines))))
        elif kind == "code":
            made.append("\n".join(["```", *(line[2:] for line in lines), "```"]))
    return "\n\n".join(made)


def cell(comment):
    return escape(" ".join(comment.split())).replace("|", "\\|")


def escape(text):
    """What Markdown would take for markup, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([_*<>])", r"\\\1", part)
                   for part in parts)


# --- what is described ---------------------------------------------------------------------------


def anchor(name):
    return name.lower().replace(".", "")


def link(type_name):
    name = type_name.removeprefix(PACKAGE)
    return f"[{name}](#{anchor(name)})"


def type_of(field, message):
    entry = next((one for one in message.nested_type
                  if one.options.map_entry and field.type_name.endswith(f".{one.name}")), None)
    if entry is not None:
        key, value = (Field.Type.Name(one.type).removeprefix("TYPE_").lower()
                      for one in entry.field)
        return f"map\\<{key}, {value}\\>"
    if field.type in (Field.TYPE_MESSAGE, Field.TYPE_ENUM):
        name = link(field.type_name)
    else:
        name = Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == Field.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return name


def describe_enum(file, enum, path, prefix=""):
    lines = [f"### {prefix}{enum.name}", "", paragraphs(file.comment(path)), "",
             "| value | number | is |", "|---|---|---|"]
    for i, value in enumerate(enum.value):
        comment = cell(file.comment((*path, ENUM_VALUE, i)))
        lines.append(f"| `{value.name}` | {value.number} | {comment} |")
    return "\n".join(lines)


def describe_message(file, message, path, prefix=""):
    name = prefix + message.name
    lines = [f"### {name}", "", paragraphs(file.comment(path)), ""]
    if message.field:
        lines += ["| field | type | is |", "|---|---|---|"]
    else:
        lines.append("No fields.")
    for i, field in enumerate(message.field):
        comment = cell(file.comment((*path, MESSAGE_FIELD, i)))
        lines.append(f"| `{field.name}` = {field.number} | {type_of(field, message)} | {comment} |")
    sections = ["\n".join(lines)]
    for i, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            sections += describe_message(file, nested, (*path, MESSAGE_NESTED, i), f"{name}.")
    sections += [describe_enum(file, enum, (*path, MESSAGE_ENUM, i), f"{name}.")
                 for i, enum in enumerate(message.enum_type)]
    return sections


def describe_service(file, service, path):
    lines = [f"### {service.name}", "", paragraphs(file.comment(path)), "",
             "| method | request | response | does |", "|---|---|---|---|"]
    for i, method in enumerate(service.method):
        response = ("stream of " if method.server_streaming else "") + link(method.output_type)
        comment = cell(file.comment((*path, SERVICE_METHOD, i)))
        lines.append(f"| `{method.name}` | {link(method.input_type)} | {response} | {comment} |")
    return "\n".join(lines)


def describe_file(file):
    descriptor = file.descriptor
    sections = [f"## {pathlib.Path(descriptor.name).name}"]
    for i, service in enumerate(descriptor.service):
        sections.append(describe_service(file, service, (FILE_SERVICE, i)))
    for i, message in enumerate(descriptor.message_type):
        sections += describe_message(file, message, (FILE_MESSAGE, i))
    for i, enum in enumerate(descriptor.enum_type):
        sections.append(describe_enum(file, enum, (FILE_ENUM, i)))
    return sections


def make():
    head = HEAD.format(
        python=(ROOT / "client" / "python" / "examples" / "stream.py").read_text(encoding="utf-8"),
        cpp=(ROOT / "client" / "examples" / "stream.cc").read_text(encoding="utf-8"))
    sections = [section for file in read_files() for section in describe_file(file)]
    text = head + "\n\n".join(sections) + "\n"
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text))


def main():
    parser = argparse.ArgumentParser(description="Writes docs/api.md.")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = make()
    if not check:
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        sys.exit(f"{OUTPUT} is out of date: run scripts/make_api_docs.py")


if __name__ == "__main__":
    main()
