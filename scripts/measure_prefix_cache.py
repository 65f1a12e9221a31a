#!/usr/bin/env python3
"""Measures what prefix caching saves: the time to the first token of a question about a long document,
and of a second, different question about the same document.

    TIDAL_BIN_DIR=build/release/bin build/venv/bin/python scripts/measure_prefix_cache.py \
        [--tokens=32000] [--documents=3]

Prints a line for each document; exits with 1 where a second question takes 5 % of the first one's
time or more.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

import conftest  # noqa: E402

LARGEST_SHARE = 0.05


def make_prompt(num_tokens, seed):
    command = [sys.executable, str(conftest.MODEL / "grammar.py"), f"--tokens={num_tokens}",
               f"--seed={seed}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def time_to_first_token(api, inference, token_ids):
    pb = api.inference_pb2
    answer = inference.Generate(pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=token_ids), sampling=pb.SamplingParams(temperature=0),
        stopping=pb.StoppingCriteria(max_new_tokens=8)))
    return answer.timings.time_to_first_token_seconds, answer.usage


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--documents", type=int, default=3)
    options = parser.parse_args()
    shares = []
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        api = conftest._make_stubs(directory)
        server = conftest.Server(api, directory, "--kv_cache_memory=1GiB",
                                 "--selection_layers=2,5")
        with server.channel() as channel:
            inference = server.inference(channel)
            for seed in range(options.documents):
                text = make_prompt(options.tokens, seed)
                token_ids = list(inference.Tokenize(
                    api.inference_pb2.TokenizeRequest(text=text)).token_ids)
                first, usage = time_to_first_token(api, inference, token_ids)
                assert usage.cached_prompt_tokens == 0
                # Another question of 30 tokens at the end of the document.
                second, usage = time_to_first_token(api, inference,
                                                    token_ids[:-30] + token_ids[-60:-30])
                shares.append(second / first)
                print(f"{len(token_ids)} tokens: first question {first:.3f} s, second "
                      f"{second:.4f} s ({usage.cached_prompt_tokens} tokens cached), "
                      f"{100 * second / first:.2f} %", flush=True)
        assert server.stop() == 0, server.log()
    return 0 if max(shares) < LARGEST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
