"""Trains the embedded model: a curriculum of ever longer documents, on one GPU.

    python3 train.py --out /tmp/needle                       # the whole curriculum
    python3 train.py --out /tmp/needle --start /tmp/needle --stages 5-6   # more of the long ones

Writes a Hugging Face folder after every stage, and train_log.jsonl: a line for every twentieth
step and one of measurements for every stage. The data depends on --seed alone; the weights also
on the GPU's arithmetic.
"""

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import random
import time

import corpus
import grammar
import torch
import torch.nn.functional as F
from corpus import NO_LABEL, Shape
from model import EOS_ID, Llama, Sparse, load, save
from muon import Muon

# Rows that every stage after the first sees at each step besides its own, so that what was
# learnt at short lengths stays.
TINY = Shape(192, 64, 4, 3, 43, repeats=0.05, compound=0.05)
SHORT = Shape(512, 32, 10, 6, 100, repeats=0.02, compound=0.12, verse=0.15, max_verse=100)
MEDIUM = Shape(2048, 8, 24, 16, 512, compound=0.12, verse=0.3, max_verse=300)
LONG = Shape(8192, 2, 48, 32, 2048, compound=0.12, verse=0.3, max_verse=512)
VERY_LONG = Shape(32768, 1, 64, 48, 8192, compound=0.12, verse=0.3, max_verse=512)


@dataclasses.dataclass(frozen=True)
class Stage:
    """`steps` steps; each takes one batch of `main` and, at half the weight, one of `sides`.

    It ends early, after a quarter of the steps, once the smoothed answer loss is under `enough`.
    """

    name: str
    steps: int
    lr: float  # Of AdamW; Muon's is ten times that.
    main: tuple[Shape, ...]  # One of them is picked for each step.
    sides: tuple[Shape, ...] = ()
    enough: float = 0.0
    lm_weight: float = 0.3  # Of the loss of all tokens against that of the answers.
    sparse: float = 0.0  # Share of batches whose answers are decoded as TidalDecode does,
    sparse_long: float = 0.0  # and of those over LONGEST_SHORT tokens.
    final_lr: float = 0.3  # Share of lr that is left at the end of the stage.
    averaged: int = 0  # The stage leaves the mean of the weights after each of its last steps.


STAGES = [
    Stage("256", 1500, 2e-3, (Shape(256, 240, 8, 4, 128, repeats=0.25, restated=0.25),),
          enough=0.02, lm_weight=1.0),
    Stage("bridge", 900, 1.5e-3,
          (Shape(256, 240, 8, 4, 128, repeats=0.08, bridge=0.45, restated=0.17),), enough=0.04),
    Stage("512", 600, 2e-3,
          (Shape(512, 128, 10, 6, 200, repeats=0.05, bridge=0.05, restated=0.1, compound=0.12,
                 verse=0.1, max_verse=100),), (TINY,), enough=0.02),
    Stage("2K", 600, 1.5e-3, (Shape(2048, 32, 24, 16, 1200, repeats=0.05, restated=0.05,
                                    compound=0.12, verse=0.2, max_verse=300),),
          (TINY, SHORT), enough=0.015),
    Stage("8K", 500, 1.2e-3,
          (Shape(8192, 8, 48, 32, 5000, compound=0.12, verse=0.3, max_verse=512),),
          (TINY, SHORT, MEDIUM), enough=0.01),
    Stage("32K", 300, 8e-4,
          (Shape(32768, 2, 64, 48, 20000, compound=0.12, verse=0.3, max_verse=512),),
          (TINY, SHORT, MEDIUM, LONG), enough=0.006),
    Stage("100K", 220, 6e-4,
          (Shape(102400, 1, 64, 48, 70000, compound=0.12, verse=0.3, max_verse=512),) * 4 +
          (Shape(131072, 1, 64, 48, 100000, compound=0.12, verse=0.3, max_verse=512),),
          (TINY, SHORT, MEDIUM, LONG, VERY_LONG), final_lr=0.05),
    # Not part of the default run: README.md tells how they are used. These two let TidalDecode
    # work, at a cost at 100K.
    Stage("share", 120, 1e-3,
          (Shape(512, 64, 10, 6, 100, restated=0.05, compound=0.12, verse=0.1, max_verse=100),),
          (TINY, MEDIUM), sparse=0.7),
    Stage("all", 80, 5e-4,
          (Shape(2048, 32, 24, 16, 1200, compound=0.12, verse=0.2, max_verse=300),
           Shape(8192, 8, 48, 32, 5000, compound=0.12, verse=0.3, max_verse=512),
           Shape(32768, 2, 64, 48, 20000, compound=0.12, verse=0.2, max_verse=512)) +
          (Shape(102400, 1, 64, 48, 90000, compound=0.12, verse=0.2, max_verse=300),) * 3 +
          (Shape(131072, 1, 64, 48, 110000, compound=0.12, verse=0.2, max_verse=300),),
          (TINY, SHORT, MEDIUM, LONG), sparse=0.6, sparse_long=0.6, final_lr=0.03),
    # Twice: a long gentle end for both, first as TidalDecode decodes, then with full attention.
    Stage("settle", 320, 2e-4,
          (Shape(2048, 32, 24, 16, 1200, compound=0.12, verse=0.2, max_verse=300),
           Shape(8192, 8, 48, 32, 5000, compound=0.12, verse=0.3, max_verse=512),
           Shape(32768, 2, 64, 48, 20000, compound=0.12, verse=0.2, max_verse=512)) +
          (Shape(102400, 1, 64, 48, 90000, compound=0.12, verse=0.2, max_verse=300),) * 3 +
          (Shape(131072, 1, 64, 48, 110000, compound=0.12, verse=0.2, max_verse=300),),
          (TINY, SHORT, MEDIUM, LONG), sparse=0.4, sparse_long=0.4, final_lr=0.03),
    Stage("settle", 240, 2e-4,
          (Shape(8192, 8, 48, 32, 5000, compound=0.12, verse=0.3, max_verse=512),
           Shape(32768, 2, 64, 48, 20000, compound=0.12, verse=0.2, max_verse=512)) +
          (Shape(102400, 1, 64, 48, 90000, compound=0.12, verse=0.1, max_verse=300),) * 2 +
          (Shape(131072, 1, 64, 48, 110000, compound=0.12, verse=0.1, max_verse=300),) * 2,
          (TINY, SHORT, MEDIUM, LONG), sparse=0.5, averaged=120),
]
LONGEST_SHORT = 40000
WARM_UP_STEPS = 20
SIDE_WEIGHT = 0.5
HOPELESS = 0.35  # A smoothed answer loss at which the second stage's end is the run's end.
MEASURED = {64: 128, 150: 128, 300: 128, 500: 128, 2000: 64, 10000: 48, 32000: 32, 100000: 20}


def plan(stages, seed):
    """Every step in order: (stage, step in the stage, [(shape, seed of the batch, weight)])."""
    for stage in stages:
        for step in range(stage.steps):
            rng = random.Random(f"{seed} {stage.name} {step}")
            parts = [(grammar.pick(rng, stage.main), int(rng.random() * 2**48), 1.0)]
            if stage.sides:
                parts.append((grammar.pick(rng, stage.sides), int(rng.random() * 2**48),
                              SIDE_WEIGHT))
            yield stage, step, parts


def _produce(queue, stages, seed, worker, num_workers):
    for i, (_, _, parts) in enumerate(plan(stages, seed)):
        if i % num_workers == worker:
            queue.put([(corpus.make_batch(shape, s), weight) for shape, s, weight in parts])


def start_producers(stages, seed, num_workers):
    """Processes that make plan's batches ahead. Call it before the GPU is touched: they fork."""
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(maxsize=8) for _ in range(num_workers)]
    for worker, queue in enumerate(queues):
        context.Process(target=_produce, args=(queue, stages, seed, worker, num_workers),
                        daemon=True).start()
    return queues


def batches(stages, seed, queues):
    """plan's stages and steps, each with its batches and their weights, in order."""
    for i, (stage, step, _) in enumerate(plan(stages, seed)):
        yield stage, step, queues[i % len(queues)].get()


BUDGETS = (8, 16, 32, 64, 128, 256)


def sparse_of(weights, budget, reselection):
    """`Sparse` for the tokens of answers, which the server decodes, or None where there are none.

    weights: [batch, length], more than 0 where the next token is an answer's.
    """
    decoded = weights > 0
    decoded[:, 1:] &= weights[:, :-1] > 0
    decoded[:, 0] = False
    return Sparse(decoded, budget, reselection) if decoded.any() else None


def losses(model, batch, device, budget=None, reselection=None):
    """(loss of all tokens, weighted loss of answer tokens, share of answer tokens found)."""
    ids, labels, weights = (torch.from_numpy(x).to(device) for x in batch)
    sparse = sparse_of(weights, budget, reselection) if budget else None
    with torch.autocast(device, torch.bfloat16):
        logits = model.logits(model.hidden(ids, sparse)).flatten(0, 1)
    labels, weights = labels.flatten(), weights.flatten()
    each = F.cross_entropy(logits.float(), labels, ignore_index=NO_LABEL, reduction="none")
    answers = weights.nonzero()[:, 0]
    found = (logits[answers].argmax(-1) == labels[answers]).sum() / max(1, len(answers))
    return (each.sum() / (labels != NO_LABEL).sum(),
            (each * weights).sum() / weights.sum().clamp(min=1e-6), found)


def rate(stage, step):
    """The share of the stage's learning rate at a step: a short warm-up, then a straight line."""
    decay = 1 - (1 - stage.final_lr) * step / stage.steps
    return min(1.0, (step + 1) / WARM_UP_STEPS) * decay


def make_optimizers(model):
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() == 1] + [model.model.embed_tokens.weight]
    return Muon(matrices, lr=0.0), torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95),
                                                     weight_decay=0.0)


def take_step(model, optimizers, parts, stage, step, reselection, device):
    """One update; returns the losses of every batch."""
    results, rng = [], random.Random(f"{stage.name} {step}")
    for batch, weight in parts:
        share = stage.sparse if batch[0].shape[1] <= LONGEST_SHORT else stage.sparse_long
        budget = grammar.pick(rng, BUDGETS) if rng.random() < share else None
        all_tokens, answers, found = losses(model, batch, device, budget, reselection)
        (weight * (stage.lm_weight * all_tokens + answers)).backward()
        results.append((all_tokens.detach(), answers.detach(), found))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, factor in zip(optimizers, (10.0, 1.0)):
        for group in optimizer.param_groups:
            group["lr"] = factor * stage.lr * rate(stage, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return results


@torch.no_grad()
def measure(model, num_tokens, num_cases, device, task="single", num_distractors=0):
    """(found, stopped): shares of prompts whose answer, and then the stop, is greedy's choice.

    The right answer is put in, and every position's choice compared: the same as decoding.
    """
    found = stopped = 0
    batch_size = max(1, min(16, 16384 // num_tokens))
    cases = [grammar.make_pieces(num_tokens, i / max(1, num_cases - 1), 10**9 + i, task,
                                 num_distractors=num_distractors)
             for i in range(num_cases)]
    for first in range(0, num_cases, batch_size):
        rows = [(corpus.encode(p), corpus.encode(a)) for p, a in cases[first:first + batch_size]]
        longest = 1 + max(len(p) + len(a) for p, a in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, (prompt, answer) in enumerate(rows):
            row = [corpus.BOS_ID] + prompt + answer
            ids[i, :len(row)] = torch.tensor(row)
        with torch.autocast(device, torch.bfloat16):
            hidden = model.hidden(ids.to(device))
            for i, (prompt, answer) in enumerate(rows):
                at = slice(len(prompt), len(prompt) + len(answer) + 1)
                choice = model.logits(hidden[i, at]).argmax(-1).tolist()
                found += choice[:-1] == answer
                stopped += choice == answer + [EOS_ID]
    return found / num_cases, stopped / num_cases


def measure_rounded(model, longest, device):
    """`measure` at every length up to `longest` tokens, with the weights rounded to bf16."""
    rounded = Llama().to(device)
    rounded.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    results = {str(n): measure(rounded, n, cases, device)
               for n, cases in MEASURED.items() if n <= longest}
    for task in ("several", "chain", "verse"):
        results[task] = measure(rounded, min(2000, longest), 64, device, task)
    for n in (250, 2000, 32000, 100000):
        if n <= longest:
            results[f"{n}, 8 distractors"] = measure(rounded, n, MEASURED.get(n, 64), device,
                                                     num_distractors=8)
    return results


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--start", type=pathlib.Path, help="folder of a checkpoint to go on from")
    parser.add_argument("--stages", default="1-7", help="first-last, from 1")
    for name in ("lr", "sparse", "sparse_long"):
        parser.add_argument(f"--{name}", type=float, help="instead of the stages' own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reselection", type=int, default=5, help="TidalDecode's second layer")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--shrink", type=int, default=1,
                        help="divides steps, batches and lengths over 512, to try the program")
    return parser.parse_args()


def shrunk(stage, factor):
    """The stage, smaller by the factor."""
    def shrink(shape):
        length = max(min(shape.length, 512), shape.length // factor)
        return dataclasses.replace(shape, batch=max(1, shape.batch // factor), length=length,
                                   min_length=min(shape.min_length, length))
    return dataclasses.replace(stage, steps=max(2, stage.steps // factor),
                               main=tuple(map(shrink, stage.main)),
                               sides=tuple(map(shrink, stage.sides)))


def main():
    args = parse_arguments()
    first, last = map(int, args.stages.split("-"))
    stages = [s if args.shrink == 1 else shrunk(s, args.shrink) for s in STAGES[first - 1:last]]
    changed = {k: v for k in ("lr", "sparse", "sparse_long")
               if (v := getattr(args, k)) is not None}
    stages = [dataclasses.replace(s, **changed) for s in stages]
    queues = start_producers(stages, args.seed, args.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    model = load(args.start, device) if args.start else Llama().to(device)
    optimizers = make_optimizers(model)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    with open(args.out / "train_log.jsonl", "a", encoding="utf-8") as log_file:
        def log(**entry):
            line = json.dumps({"seconds": round(time.time() - start, 1), **entry})
            print(line, file=log_file, flush=True)
            print(line, flush=True)

        for stage, step, parts in batches(stages, args.seed, queues):
            if step == 0:
                smoothed, ended = 1.0, False
            if ended:
                continue
            results = take_step(model, optimizers, parts, stage, step, args.reselection, device)
            smoothed += 0.05 * (results[0][1].item() - smoothed)
            ended = step == stage.steps - 1 or (step >= stage.steps // 4 and
                                                smoothed < stage.enough)
            if step == stage.steps - stage.averaged:
                mean = torch.optim.swa_utils.AveragedModel(model)
            if step >= stage.steps - stage.averaged:
                mean.update_parameters(model)
                if ended:
                    model.load_state_dict(mean.module.state_dict())
            if step % 20 == 0 or ended:
                entry = {k: [round(float(r[i]), 4) for r in results]
                         for i, k in enumerate(("loss", "answer_loss", "answer_accuracy"))}
                log(stage=stage.name, step=step, smoothed_answer_loss=round(smoothed, 4), **entry)
            if step % 50 == 49 or ended:
                save(model, args.out)
            if ended:
                longest = max(s.length for s in stage.main)
                log(stage=stage.name, found_and_stopped=measure_rounded(model, longest, device))
                if smoothed > HOPELESS and stage.name == "bridge" and args.shrink == 1:
                    raise SystemExit(f"stage {stage.name} did not learn to find needles")


if __name__ == "__main__":
    main()
