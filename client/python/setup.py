"""Generates the stubs of the server's API, `tidal.inference.v1`, into what is built.

From ../../proto, or, in a source distribution, from the copy of it in proto/.
"""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
API = pathlib.Path("tidal", "inference", "v1")


def proto_folder():
    for folder in (HERE / "proto", HERE.parents[1] / "proto"):
        if (folder / API).is_dir():
            return folder
    raise FileNotFoundError(f"the API's protos are neither in {HERE / 'proto'} nor in ../../proto")


class BuildWithStubs(build_py):
    def run(self):
        super().run()
        from grpc_tools import protoc

        folder = proto_folder()
        output = pathlib.Path(self.build_lib)
        output.mkdir(parents=True, exist_ok=True)
        files = [str(path) for path in sorted((folder / API).glob("*.proto"))]
        arguments = ["protoc", f"--proto_path={folder}", f"--python_out={output}",
                     f"--pyi_out={output}", f"--grpc_python_out={output}", *files]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc failed: {' '.join(arguments)}")
        # Type checkers read the stubs of a package that says it is typed.
        for name in ("__init__.py", "py.typed"):
            (output / API / name).touch()

    def get_outputs(self, include_bytecode=1):
        stubs = pathlib.Path(self.build_lib, API)
        return [*super().get_outputs(include_bytecode), *map(str, sorted(stubs.glob("*.*")))]


class SdistWithProtos(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copytree(proto_folder() / API, pathlib.Path(base_dir, "proto") / API,
                        dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithStubs, "sdist": SdistWithProtos})
