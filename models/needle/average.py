"""The mean of two checkpoints' weights: how the last two states of training become the model.

    python3 average.py AFTER_STAGE_7 AFTER_STAGE_9 --share 0.5 --out DIR

Stage 7 leaves weights that find facts at 100 thousand tokens but not with TidalDecode; stages 8 and 9
leave the opposite. Both lie close together, and between them lie weights that do both.
"""

import argparse
import pathlib

import torch
from model import save_configs
from safetensors.torch import load_file, save_file


def average(first, second, share):
    """share = 0 gives the first, 1 the second; computed in float32, rounded to bf16."""
    return {name: torch.lerp(weight.float(), second[name].float(), share).to(torch.bfloat16)
            for name, weight in first.items()}


def main():
    parser = argparse.ArgumentParser(description="Average two checkpoints.")
    parser.add_argument("first", type=pathlib.Path)
    parser.add_argument("second", type=pathlib.Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    weights = average(load_file(str(args.first / "model.safetensors")),
                      load_file(str(args.second / "model.safetensors")), args.share)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(args.out / "model.safetensors"), metadata={"format": "pt"})
    save_configs(args.out)


if __name__ == "__main__":
    main()
