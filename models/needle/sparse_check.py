"""Which re-selection layer of TidalDecode loses nothing on this model?

    python3 sparse_check.py --out sparse_check.json       # wants a GPU

Prefill is full attention; each decode step runs layers 0 and 1 full, selects positions in layer 2
and again in the re-selection layer, and attends only the selected ones elsewhere. The answers are
decoded greedily from one prefill for every plan.
"""

import argparse
import json
import pathlib

import corpus
import grammar
import torch
from model import EOS_ID, HEAD_DIM, HEADS, KV_HEADS, LAYERS, load, rope_table

FOLDER = pathlib.Path(__file__).resolve().parent
GROUP = HEADS // KV_HEADS
FIRST_SELECTION = 2
FULL = (None, 0, "")  # (re-selection layer, token budget, selection scope)


class Decoder:
    """Full prefill, then single steps under a plan; one sequence at a time."""

    def __init__(self, model, device):
        self.model, self.device = model, device
        self.keys, self.values = [], []  # Of each layer: [KV_HEADS, capacity, HEAD_DIM].

    @torch.inference_mode()
    def prefill(self, ids, room):
        """Returns the last position's choice; leaves room for `room` more tokens."""
        x = self.model.model.embed_tokens(torch.tensor([ids], device=self.device))
        self.rope = rope_table(len(ids) + room, self.device)
        rope = tuple(t[:len(ids)] for t in self.rope)
        self.keys, self.values = [], []
        with torch.autocast(self.device, torch.bfloat16):
            for layer in self.model.model.layers:
                attention, normed = layer.self_attn, layer.input_layernorm(x)
                _, k, v = attention.qkv(normed, rope)
                for cache, new in ((self.keys, k), (self.values, v)):
                    cache.append(torch.nn.functional.pad(new[0].float(), (0, 0, 0, room)))
                x = x + attention(normed, rope)
                x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.logits(self.model.model.norm(x[0, -1])).argmax().item()

    @torch.inference_mode()
    def step(self, token, position, plan):
        """Decodes one token in float32; returns the next one."""
        reselection, budget, scope = plan
        x = self.model.model.embed_tokens(torch.tensor([[token]], device=self.device))
        rope = tuple(t[position:position + 1] for t in self.rope)
        sparse = reselection is not None and position + 1 > budget
        selected = None
        for i, layer in enumerate(self.model.model.layers):
            q, k, v = layer.self_attn.qkv(layer.input_layernorm(x), rope)
            self.keys[i][:, position], self.values[i][:, position] = k[0, :, 0], v[0, :, 0]
            keys, values = self.keys[i][:, :position + 1], self.values[i][:, :position + 1]
            q = q[0].reshape(KV_HEADS, GROUP, HEAD_DIM)
            selects = sparse and i in (FIRST_SELECTION, reselection)
            scores = q @ keys.transpose(1, 2) / HEAD_DIM**0.5  # [KV_HEADS, GROUP, position + 1]
            if sparse and i > FIRST_SELECTION and not selects:
                scores = scores.masked_fill(~selected, float("-inf"))
            if selects:
                selected = select(scores, budget, scope)
            y = (scores.softmax(-1) @ values).reshape(1, HEADS, 1, HEAD_DIM)
            x = x + layer.self_attn.out(y)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.model.logits(self.model.model.norm(x[0, -1])).argmax().item()


def select(scores, budget, scope):
    """A mask like `scores` of the `budget` best positions, the last one always among them."""
    if scope == "kv_head":
        scores = scores.softmax(-1).sum(1, keepdim=True).expand_as(scores)
    best = scores[..., :-1].topk(budget - 1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    mask[..., -1] = True
    return mask


def answers(decoder, first, num_prompt_tokens, right, plan):
    """Whether greedy decoding under a plan gives the right ids."""
    token = first
    for i, expected in enumerate(right):
        if token != expected:
            return False
        if i + 1 < len(right):
            token = decoder.step(token, num_prompt_tokens + i, plan)
    return True


def check(model, device, task, num_tokens, num_cases, plans):
    """Answers that are right and stop, under every plan."""
    decoder, counts = Decoder(model, device), {plan: 0 for plan in plans}
    for i in range(num_cases):
        prompt, answer = grammar.make_pieces(num_tokens, i / max(1, num_cases - 1), 7_000_000 + i,
                                             task)
        ids = [corpus.BOS_ID] + corpus.encode(prompt)
        right = corpus.encode(answer) + [EOS_ID]
        first = decoder.prefill(ids, len(right))
        for plan in plans:
            counts[plan] += answers(decoder, first, len(ids), right, plan)
    return [{"task": task, "tokens": num_tokens, "cases": num_cases, "reselection_layer": plan[0],
             "token_budget": plan[1], "scope": plan[2], "right": right}
            for plan, right in counts.items()]


def main():
    parser = argparse.ArgumentParser(description="Find the best re-selection layer.")
    parser.add_argument("--model", type=pathlib.Path, default=FOLDER)
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER / "sparse_check.json")
    parser.add_argument("--tokens", default="2000,10000,32000,100000")
    parser.add_argument("--cases", default="50,50,30,20", help="one figure for each length")
    parser.add_argument("--budgets", default="8,16,64,256")
    parser.add_argument("--scopes", default="kv_head")
    parser.add_argument("--task", choices=list(grammar.DEFAULT_SIZES), default="single")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(args.model, device).eval()
    plans = [FULL] + [(layer, int(budget), scope) for scope in args.scopes.split(",")
                      for budget in args.budgets.split(",")
                      for layer in range(FIRST_SELECTION + 1, LAYERS)]
    results = json.loads(args.out.read_text()) if args.out.exists() else []
    for num_tokens, num_cases in zip(args.tokens.split(","), args.cases.split(",")):
        rows = check(model, device, args.task, int(num_tokens), int(num_cases), plans)
        print(args.task, num_tokens, num_cases, "cases; full:", rows[0]["right"])
        for first in range(1, len(rows), LAYERS - FIRST_SELECTION - 1):
            part = rows[first:first + LAYERS - FIRST_SELECTION - 1]
            print("  budget", part[0]["token_budget"], part[0]["scope"],
                  {f"L{row['reselection_layer']}": row["right"] for row in part}, flush=True)
        results += rows
    lines = ",\n".join(json.dumps(row) for row in results)
    args.out.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
