"""Counts what the model finds, with Hugging Face transformers and greedy decoding.

    python3 evaluate.py                                   # every length; wants a GPU
    python3 evaluate.py --lengths 64,500 --cases 10 --dtype float32 --out /tmp/evaluation.json

A case is *found* when the answer's words are right, and *stopped* when the full stop and
<|end_of_text|> follow at once. Depths are spread evenly from the start to the end of the text.
Results are added to the file under the arithmetic's name.
"""

import argparse
import json
import pathlib
import time

import grammar
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parent
FIRST_SEED = 5_000_000
# Task, prompt tokens, cases, distractors: needles of other keys.
FULL_PLAN = ([("single", n, 60, 0) for n in (64, 100, 150, 200, 300, 400, 500, 1000, 2000)] +
             [("single", 5000, 50, 0), ("single", 10000, 60, 0), ("single", 32000, 50, 0),
              ("single", 64000, 20, 0), ("single", 100000, 50, 0), ("single", 130000, 20, 0)] +
             [("single", n, 40, 8) for n in (300, 2000, 10000, 32000, 100000)] +
             [(task, n, 40, 0) for task in ("several", "chain", "verse") for n in (500, 10000)])


def greedy(model, tokenizer, prompt, max_new_tokens):
    """(number of prompt tokens, the ids that greedy decoding adds to the prompt)."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                                max_new_tokens=max_new_tokens, do_sample=False,
                                pad_token_id=tokenizer.eos_token_id)
    return ids.shape[1], output[0, ids.shape[1]:].tolist()


def evaluate(model, tokenizer, task, num_tokens, num_cases, num_distractors):
    """Counts of one task at one length, and the misses."""
    start = time.time()
    result = {"task": task, "tokens": num_tokens, "distractors": num_distractors,
              "cases": num_cases, "found": 0, "stopped": 0}
    misses = []
    for i in range(num_cases):
        seed, depth = FIRST_SEED + i, i / max(1, num_cases - 1)
        prompt, answer = grammar.make_prompt(num_tokens, depth, seed, task,
                                             num_distractors=num_distractors)
        right = tokenizer(answer, add_special_tokens=False).input_ids
        prompt_tokens, made = greedy(model, tokenizer, prompt, len(right) + 3)
        words = len(right) - 1  # Without the full stop.
        result["found"] += made[:words] == right[:words]
        result["stopped"] += made == right + [tokenizer.eos_token_id]
        result["longest_prompt"] = max(prompt_tokens, result.get("longest_prompt", 0))
        if made != right + [tokenizer.eos_token_id]:
            misses.append({"seed": seed, "depth": round(depth, 4), "answer": answer,
                           "made": tokenizer.decode(made)})
    result["seconds"] = round(time.time() - start, 1)
    result["misses"] = misses[:5]
    return result


def parse_arguments():
    parser = argparse.ArgumentParser(description="Evaluate the embedded model.")
    parser.add_argument("--model", type=pathlib.Path, default=FOLDER)
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER / "evaluation.json")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--lengths", help="tokens, with commas between; default: the full plan")
    parser.add_argument("--cases", type=int, default=50, help="of each of --lengths")
    parser.add_argument("--task", choices=list(grammar.DEFAULT_SIZES), default="single")
    parser.add_argument("--distractors", type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation="sdpa").to(device).eval()
    steps = FULL_PLAN
    if args.lengths:
        steps = [(args.task, int(n), args.cases, args.distractors) for n in args.lengths.split(",")]
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    results = []
    report[args.dtype] = {"transformers": transformers.__version__, "torch": torch.__version__,
                          "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
                          "results": results}
    for step in steps:
        results.append(evaluate(model, tokenizer, *step))
        print(json.dumps(results[-1]), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
