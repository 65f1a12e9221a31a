#!/usr/bin/env python3
"""Computes from a checkpoint's config.json what weights and KV cache take, and how many long
sequences a device holds. Standard library only.

  scripts/size_memory.py config.json [--memory_gib=79] [--context=100000] [--device=cuda|cpu]
                         [--fraction=0.9] [--workspace_gib=2]
  scripts/size_memory.py --table      the tables of docs/operations.md

tidal-server divides memory likewise (--gpu_memory_fraction), and holds no more blocks than
--max_running_requests sequences of --max_model_len could fill. The workspaces are an allowance,
with the 512 MiB that the server leaves free on a GPU: what they really take is
tidal_memory_bytes{kind="workspace"} of a running server.
"""

import argparse
import dataclasses
import json
import pathlib

GIB = 1 << 30
BLOCK_SIZE = 16  # tokens
ELEMENT_BYTES = {"cuda": 2, "cpu": 4}  # bfloat16 or float16; float32
DEFAULT_FRACTION = {"cuda": 0.9, "cpu": 0.5}


@dataclasses.dataclass(frozen=True)
class Shape:
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    has_tied_embeddings: bool

    @staticmethod
    def from_config(config):
        num_query_heads = config["num_attention_heads"]
        return Shape(
            num_layers=config["num_hidden_layers"], hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"], num_query_heads=num_query_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_query_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_query_heads,
            vocab_size=config["vocab_size"],
            has_tied_embeddings=config.get("tie_word_embeddings", False))

    def num_parameters(self):
        """Without biases, which are few."""
        query_size = self.num_query_heads * self.head_dim
        kv_size = self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query_size + 2 * kv_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.has_tied_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + embeddings + self.hidden_size

    def kv_bytes_per_token(self, device):
        """K and V of each KV head in each layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * ELEMENT_BYTES[device]

    def held_bytes_per_token(self, device):
        """With a float32 score of each query head, for which a GPU holds room, or, on a CPU, with the
        minima and maxima of each block's keys."""
        kv_bytes = self.kv_bytes_per_token(device)
        return kv_bytes + (4 * self.num_query_heads if device == "cuda" else kv_bytes // BLOCK_SIZE)


def kv_cache_bytes(shape, device, memory_gib, fraction, workspace_gib):
    """On a GPU the fraction is for weights, workspaces and KV cache together; on a CPU it is the
    KV cache's, of what the weights leave."""
    weights_bytes = shape.num_parameters() * ELEMENT_BYTES[device]
    if device == "cuda":
        left = fraction * memory_gib * GIB - weights_bytes - workspace_gib * GIB
    else:
        left = fraction * (memory_gib * GIB - weights_bytes - workspace_gib * GIB)
    return max(0, int(left))


def num_blocks(shape, device, cache_bytes):
    return cache_bytes // (BLOCK_SIZE * shape.held_bytes_per_token(device))


def num_sequences(shape, device, cache_bytes, context):
    """Sequences of so many tokens that have room at once, each in whole blocks."""
    return num_blocks(shape, device, cache_bytes) // -(-context // BLOCK_SIZE)


# --- the tables of docs/operations.md ------------------------------------------------------------

MODELS = {
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 64, 128256, True),
    "Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128, 128256, True),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "Mistral-7B-v0.3": Shape(32, 4096, 14336, 32, 8, 128, 32768, False),
    "Llama-2-7B (32 KV heads)": Shape(32, 4096, 11008, 32, 32, 128, 32000, False),
    "Llama-2-13B (40 KV heads)": Shape(40, 5120, 13824, 40, 40, 128, 32000, False),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128, 128256, False),
}
# What drivers report as total, in GiB, rounded down.
GPUS = {"24 GB (L4, A10, RTX 4090)": 22, "48 GB (L40S)": 44, "80 GB (A100, H100)": 79,
        "141 GB (H200)": 139}
TABLE_CONTEXT = 100_000


def print_tables():
    print("| model | weights | KV a token | KV of 100,000 tokens |")
    print("|---|---|---|---|")
    for name, shape in MODELS.items():
        weights = shape.num_parameters() * ELEMENT_BYTES["cuda"] / GIB
        per_token = shape.kv_bytes_per_token("cuda")
        print(f"| {name} | {weights:.1f} GiB | {per_token // 1024} KiB"
              f" | {per_token * TABLE_CONTEXT / GIB:.1f} GiB |")
    print()
    print(f"| sequences (tokens in all) | {' | '.join(GPUS)} |")
    print("|---|" + "---|" * len(GPUS))
    for name, shape in MODELS.items():
        cells = []
        for memory_gib in GPUS.values():
            cache = kv_cache_bytes(shape, "cuda", memory_gib, DEFAULT_FRACTION["cuda"], 2.0)
            tokens = num_blocks(shape, "cuda", cache) * BLOCK_SIZE
            sequences = num_sequences(shape, "cuda", cache, TABLE_CONTEXT)
            cells.append(f"{sequences} ({tokens // 1000:,}K)" if cache else "-")
        print(f"| {name} | {' | '.join(cells)} |")


def print_sizes(shape, options):
    fraction = options.fraction or DEFAULT_FRACTION[options.device]
    cache = kv_cache_bytes(shape, options.device, options.memory_gib, fraction,
                           options.workspace_gib)
    per_token = shape.kv_bytes_per_token(options.device)
    weights_bytes = shape.num_parameters() * ELEMENT_BYTES[options.device]
    print(f"parameters                {shape.num_parameters():,}")
    print(f"weights                   {weights_bytes:,} bytes ({weights_bytes / GIB:.1f} GiB)")
    print(f"KV a token                {per_token:,} bytes")
    print(f"KV cache a token          {shape.held_bytes_per_token(options.device):,} bytes")
    print(f"KV of a sequence          {per_token * options.context / GIB:.2f} GiB,"
          f" at {options.context:,} tokens")
    print(f"KV cache                  {cache / GIB:.1f} GiB of {options.memory_gib:g} GiB:"
          f" {num_blocks(shape, options.device, cache) * BLOCK_SIZE:,} tokens")
    print("sequences at once         "
          f"{num_sequences(shape, options.device, cache, options.context)}")


def main():
    parser = argparse.ArgumentParser(description="Sizes weights and KV cache.")
    parser.add_argument("config", nargs="?", type=pathlib.Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--memory_gib", type=float, default=79)
    parser.add_argument("--context", type=int, default=TABLE_CONTEXT)
    parser.add_argument("--device", choices=sorted(ELEMENT_BYTES), default="cuda")
    parser.add_argument("--fraction", type=float)
    parser.add_argument("--workspace_gib", type=float, default=2)
    options = parser.parse_args()
    if options.table:
        print_tables()
    elif options.config is None:
        parser.error("config.json of a checkpoint, or --table")
    elif options.context < 1:
        parser.error(f"--context: {options.context} is not 1 or more")
    else:
        config = json.loads(options.config.read_text(encoding="utf-8"))
        print_sizes(Shape.from_config(config), options)


if __name__ == "__main__":
    main()
