"""Asks the same with full attention and with smaller and smaller token budgets.

    python attention_per_request.py prompt.txt [--target=localhost:50051] [--budgets=1024,256,64]

Prints what each answer says and how much of the context its decode steps read.
"""

import argparse
import pathlib

from tidal_client import Attention, Client, Sampling, Stopping


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt_file", type=pathlib.Path)
    parser.add_argument("--target", default="localhost:50051")
    parser.add_argument("--budgets", default="1024,256,64")
    options = parser.parse_args()
    prompt = options.prompt_file.read_text(encoding="utf-8")
    attentions = [Attention("full")] + [Attention("tidal", token_budget=int(budget))
                                        for budget in options.budgets.split(",")]
    with Client(options.target) as client:
        for attention in attentions:
            answer = client.generate(prompt, attention=attention, sampling=Sampling(temperature=0),
                                     stopping=Stopping(max_new_tokens=32))
            name = f"{answer.attention.mode.value}, budget {answer.attention.token_budget or '-'}"
            print(f"{name:20} read {answer.usage.attended_share:7.2%}   {answer.text!r}")


if __name__ == "__main__":
    main()
