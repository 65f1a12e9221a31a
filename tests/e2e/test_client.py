"""tidal-client against the real server."""

import json
import os
import pathlib
import subprocess
import xml.etree.ElementTree

CLIENT = pathlib.Path(os.environ["TIDAL_BIN_DIR"]) / "tidal-client"


def run_client(*arguments):
    return subprocess.run([str(CLIENT), *arguments], capture_output=True, text=True, timeout=120)


def test_bench_measures_an_open_loop_and_draws_it(server, tmp_path):
    svg = tmp_path / "load.svg"
    done = run_client("bench", f"--target={server.target}", "--rate=20,40", "--num_requests=10",
                      "--prompt_tokens=uniform:16:64", "--output_tokens=8", "--slo_e2e=60s",
                      "--json", f"--svg_output={svg}")
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert [point["offered_requests_per_second"] for point in points] == [20, 40]
    for point in points:
        assert point["requests"]["succeeded"] == 10
        assert point["generated_tokens"] == 80
        assert point["goodput_share"] == 1
        assert 0 < point["time_to_first_token_seconds"]["p50"] <= point["end_to_end_seconds"]["max"]
    xml.etree.ElementTree.parse(svg)


def test_bench_counts_refused_requests_by_code(server):
    done = run_client("bench", f"--target={server.target}", "--num_requests=2", "--json",
                      "--prompt_tokens=4000000")
    assert done.returncode == 8, done.stderr
    assert json.loads(done.stdout)["points"][0]["errors"] == {"INVALID_ARGUMENT": 2}


def test_top_shows_one_frame_without_a_terminal(server):
    done = run_client("top", "--once", "--interval=200ms",
                      f"--metrics_target=127.0.0.1:{server.ports['metrics']}")
    assert done.returncode == 0, done.stderr
    assert "0 running   0 waiting (0 prompt tokens)" in done.stdout
    assert "KV cache used" in done.stdout
    assert "\x1b" not in done.stdout
