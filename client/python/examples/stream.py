"""Prints an answer as it comes, and what it took.

    python stream.py "Once upon a time" [--target=localhost:50051] [--max_new_tokens=64]
"""

import argparse

from tidal_client import Client, Delta, Finished, Progress, Sampling, Stopping


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    parser.add_argument("--target", default="localhost:50051")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    options = parser.parse_args()
    with Client(options.target) as client:
        stream = client.stream(options.prompt, sampling=Sampling(temperature=0),
                               stopping=Stopping(max_new_tokens=options.max_new_tokens))
        for event in stream:
            if isinstance(event, Progress) and event.prefilled_tokens < event.total_tokens:
                print(f"(prompt: {event.prefilled_tokens} of {event.total_tokens} tokens)")
            elif isinstance(event, Delta):
                print(event.text, end="", flush=True)
            elif isinstance(event, Finished):
                print(f"\n({event.usage.generated_tokens} tokens, the first one after"
                      f" {event.timings.time_to_first_token_seconds:.3f} s)")


if __name__ == "__main__":
    main()
