"""Tests of scripts/check_includes.py on small trees with and without offenders."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

CHECKER = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_includes.py"


class CheckIncludesTest(unittest.TestCase):
    def check(self, files):
        """(exit code, lines of output) of the checker on a tree of {name: text}."""
        with tempfile.TemporaryDirectory() as root:
            for name, text in files.items():
                path = pathlib.Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            result = subprocess.run([sys.executable, CHECKER, "--root", root], check=False,
                                    stdout=subprocess.PIPE, text=True)
            return result.returncode, result.stdout.splitlines()

    def assert_offence(self, files, expected):
        code, lines = self.check(files)
        self.assertEqual(code, 1, lines)
        self.assertEqual(len(lines), 1, lines)
        self.assertTrue(lines[0].startswith(expected), lines)

    def test_accepts_what_the_table_allows(self):
        code, lines = self.check({
            "engine/engine.cc": '#include "engine/backend/backend.h"\n#include <vector>\n',
            "engine/cpu/cpu.cc": '#include "engine/backend/backend.h"\n#include "engine/cpu/gemm.h"\n',
            "server/main.cc": '#include "engine/engine.h"\n#include <grpcpp/grpcpp.h>\n'
                              '#include "tidal/inference/v1/inference.pb.h"\n',
            "client/main.cc": '#include "client/x.h"\n#include "grpc/health/v1/health.pb.h"\n',
            "tools/bench.cc": '#include "engine/engine.h"\n#include "tools/report.h"\n',
            "cuda/kernel.cu": '#include <cuda_runtime.h>\n#include "engine/backend/backend.h"\n',
            "tests/server/x_test.cc": '#include "server/x.h"\n#include "engine/engine.h"\n',
        })
        self.assertEqual(code, 0, lines)

    def test_finds_line_of_an_include_of_a_higher_folder(self):
        self.assert_offence({"engine/engine.cc": '#include <vector>\n\n#include "server/x.h"\n'},
                            "engine/engine.cc:3: engine/ may not include server/x.h")

    def test_client_and_tools_keep_to_their_rows(self):
        self.assert_offence({"client/x.h": '#include "engine/engine.h"\n'}, "client/x.h:1:")
        self.assert_offence({"tools/x.cc": '#include "tidal/inference/v1/model.pb.h"\n'},
                            "tools/x.cc:1:")
        self.assert_offence({"server/x.cc": '#include "client/x.h"\n'}, "server/x.cc:1:")

    def test_seam_includes_nothing_of_ours(self):
        self.assert_offence({"engine/backend/backend.h": '#include "engine/check.h"\n'},
                            "engine/backend/backend.h:1:")

    def test_backend_sees_the_seam_alone(self):
        self.assert_offence({"engine/cpu/x.cc": '#include "engine/sequence.h"\n'},
                            "engine/cpu/x.cc:1:")
        self.assert_offence({"cuda/x.cu": '#include "engine/cpu/gemm.h"\n'}, "cuda/x.cu:1:")

    def test_engine_knows_no_grpc_proto_prometheus_or_cuda(self):
        for header in ("grpcpp/grpcpp.h", "google/protobuf/message.h", "prometheus/counter.h",
                       "cuda_runtime.h", "nccl.h", "tidal/inference/v1/inference.pb.h"):
            with self.subTest(header=header):
                self.assert_offence({"engine/x.cc": f"  #  include <{header}>\n"}, "engine/x.cc:1:")

    def test_own_headers_are_included_from_the_root_with_quotes(self):
        self.assert_offence({"engine/x.cc": '#include "x.h"\n'}, "engine/x.cc:1: include x.h by")
        self.assert_offence({"server/x.cc": '#include "../engine/x.h"\n'}, "server/x.cc:1:")
        self.assert_offence({"server/x.cc": "#include <engine/x.h>\n"}, "server/x.cc:1:")

    def test_accepts_links_that_the_table_allows(self):
        code, lines = self.check({
            "engine/CMakeLists.txt": "# a comment (with tidal_client)\n"
                                     "add_library(tidal_backend INTERFACE)\n"
                                     "tidal_library(tidal_engine\n  SOURCES a.cc\n"
                                     "  LINK tidal_backend absl::status)\n",
            "engine/cpu/CMakeLists.txt": "tidal_library(tidal_cpu SOURCES a.cc LINK tidal_backend)\n",
            "proto/CMakeLists.txt": "tidal_proto_library(tidal_proto a.proto)\n",
            "server/CMakeLists.txt": "tidal_library(tidal_server_lib SOURCES a.cc\n"
                                     "  LINK tidal_engine tidal_proto gRPC::grpc++)\n"
                                     "tidal_program(tidal-server SOURCES main.cc LINK tidal_server_lib)\n",
        })
        self.assertEqual(code, 0, lines)

    def test_finds_line_of_a_link_to_a_higher_folder(self):
        self.assert_offence({
            "proto/CMakeLists.txt": "add_library(tidal_proto STATIC a.cc)\n",
            "engine/CMakeLists.txt": "tidal_library(tidal_engine\n  SOURCES a.cc\n"
                                     "  LINK absl::status\n    tidal_proto)\n",
        }, "engine/CMakeLists.txt:4: engine/ may not link tidal_proto")

    def test_finds_links_to_forbidden_libraries(self):
        self.assert_offence({
            "engine/CMakeLists.txt": "tidal_library(tidal_engine SOURCES a.cc)\n"
                                     "target_link_libraries(tidal_engine PRIVATE gRPC::grpc++)\n",
        }, "engine/CMakeLists.txt:2:")

    def test_cpu_backend_may_not_link_the_engine(self):
        self.assert_offence({
            "engine/CMakeLists.txt": "tidal_library(tidal_engine SOURCES a.cc)\n",
            "engine/cpu/CMakeLists.txt": "tidal_library(tidal_cpu SOURCES a.cc LINK tidal_engine)\n",
        }, "engine/cpu/CMakeLists.txt:1:")

    def test_finds_target_that_nobody_defines(self):
        self.assert_offence({
            "client/CMakeLists.txt": "tidal_library(tidal_client_lib SOURCES a.cc LINK tidal_protoo)\n",
        }, "client/CMakeLists.txt:1: tidal_protoo is defined in no CMakeLists.txt")


if __name__ == "__main__":
    unittest.main()
