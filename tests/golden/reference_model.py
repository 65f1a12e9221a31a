"""A Llama-family model in float64 numpy, written from the papers, with TidalDecode's decode step.

It shares no code with transformers and none with the C++ tree, so that agreement of any two of the
three means something. It computes one token at a time or a whole prompt, unbatched, and slowly.

Source of the sparse decode: Yang et al., TidalDecode, arXiv 2410.05076. A decode step runs each
layer in one of three modes: full attention; selection, which is full attention that also picks
positions; and sparse attention over the positions picked last.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class TidalPlan:
    """How decode steps attend. Layers below selection_layers[0] are full, others sparse."""

    selection_layers: tuple[int, ...]
    scope: str  # "query_head", "kv_head" or "layer"
    token_budget: int
    num_sink_tokens: int
    num_recent_tokens: int


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def select_positions(scores, plan):
    """Ascending positions of one set, the lowest score that was chosen, the highest refused.

    scores: [context].
    """
    num_context = len(scores)
    kept = set(range(plan.num_sink_tokens))
    kept |= set(range(num_context - max(plan.num_recent_tokens, 1), num_context))
    others = [i for i in range(num_context) if i not in kept]
    others.sort(key=lambda i: (-scores[i], i))  # ties go to the lower position
    num_chosen = plan.token_budget - len(kept)
    chosen, refused = others[:num_chosen], others[num_chosen:]
    return sorted(kept | set(chosen)), scores[chosen[-1]], scores[refused[0]]


class ReferenceModel:
    """`config`: config.json's sizes. `weights`: tensors by their names in the checkpoint.

    `inverse_frequencies`: [head_dim / 2], RoPE scaling already applied.
    """

    def __init__(self, config, weights, inverse_frequencies):
        self.weights = {name: np.asarray(w, dtype=np.float64) for name, w in weights.items()}
        self.inverse_frequencies = np.asarray(inverse_frequencies, dtype=np.float64)
        self.num_layers = config["num_hidden_layers"]
        self.num_heads = config["num_attention_heads"]
        self.num_kv_heads = config["num_key_value_heads"]
        self.head_dim = config["head_dim"]
        self.eps = config["rms_norm_eps"]
        # K and V by layer: [kv_heads, context, head_dim].
        empty = np.zeros((self.num_kv_heads, 0, self.head_dim))
        self.keys = [empty] * self.num_layers
        self.values = [empty] * self.num_layers
        self.num_context = 0

    def linear(self, x, name):
        y = x @ self.weights[name + ".weight"].T
        bias = self.weights.get(name + ".bias")
        return y if bias is None else y + bias

    def norm(self, x, name):
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return x * scale * self.weights[name + ".weight"]

    def heads(self, x, positions=None):
        """[tokens, n * head_dim] -> [n, tokens, head_dim], rotated where positions are given."""
        x = x.reshape(len(x), -1, self.head_dim).transpose(1, 0, 2)
        if positions is None:
            return x
        angles = positions[:, None] * self.inverse_frequencies[None, :]
        cos, sin = np.cos(angles), np.sin(angles)
        low, high = np.split(x, 2, axis=-1)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def project(self, layer, x):
        """Appends K and V to the cache; returns q [heads, tokens, head_dim]."""
        name = f"model.layers.{layer}.self_attn."
        positions = np.arange(self.num_context, self.num_context + len(x))
        key = self.heads(self.linear(x, name + "k_proj"), positions)
        value = self.heads(self.linear(x, name + "v_proj"))
        self.keys[layer] = np.concatenate([self.keys[layer], key], axis=1)
        self.values[layer] = np.concatenate([self.values[layer], value], axis=1)
        return self.heads(self.linear(x, name + "q_proj"), positions)

    def scores(self, layer, q):
        """[heads, tokens, context], causally masked."""
        group = self.num_heads // self.num_kv_heads
        keys = np.repeat(self.keys[layer], group, axis=0)
        scores = q @ keys.transpose(0, 2, 1) / math.sqrt(self.head_dim)
        num_tokens, num_context = scores.shape[1:]
        positions = np.arange(num_context)
        allowed = positions[None, :] <= positions[num_context - num_tokens :, None]
        return np.where(allowed, scores, -np.inf)

    def mix(self, layer, probabilities):
        group = self.num_heads // self.num_kv_heads
        output = probabilities @ np.repeat(self.values[layer], group, axis=0)
        return output.transpose(1, 0, 2).reshape(probabilities.shape[1], -1)

    def run(self, token_ids, attend):
        """Logits [vocab] of the last token. attend(layer, q) -> [tokens, heads * head_dim]."""
        x = self.weights["model.embed_tokens.weight"][np.asarray(token_ids)]
        for layer in range(self.num_layers):
            name = f"model.layers.{layer}."
            q = self.project(layer, self.norm(x, name + "input_layernorm"))
            x = x + self.linear(attend(layer, q), name + "self_attn.o_proj")
            h = self.norm(x, name + "post_attention_layernorm")
            gate = self.linear(h, name + "mlp.gate_proj")
            gated = gate / (1 + np.exp(-gate)) * self.linear(h, name + "mlp.up_proj")
            x = x + self.linear(gated, name + "mlp.down_proj")
        self.num_context += len(token_ids)
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return head @ self.norm(x[-1], "model.norm")

    def full(self, token_ids):
        """Full attention: prefill of any length, or a decode step."""
        return self.run(token_ids, lambda layer, q: self.mix(layer, softmax(self.scores(layer, q))))

    def select(self, scores, plan):
        """scores [heads, context] -> the sets of the scope, and the smallest margin of any.

        Margins of scopes that pool probabilities are relative to the lowest chosen probability.
        """
        probabilities = softmax(scores)
        if plan.scope == "query_head":
            pooled = scores
        elif plan.scope == "kv_head":
            pooled = probabilities.reshape(self.num_kv_heads, -1, scores.shape[-1]).sum(axis=1)
        else:
            pooled = probabilities.max(axis=0, keepdims=True)
        sets, margin = [], math.inf
        for row in pooled:
            positions, chosen, refused = select_positions(row, plan)
            scale = 1 if plan.scope == "query_head" else chosen
            sets.append(positions)
            margin = min(margin, (chosen - refused) / scale)
        return sets, margin

    def tidal_step(self, token_id, plan):
        """One decode step -> logits, {layer: sets}, smallest margin."""
        selections, margins = {}, [math.inf]
        if self.num_context + 1 <= plan.token_budget:
            return self.full([token_id]), selections, math.inf

        def attend(layer, q):
            scores = self.scores(layer, q)
            if layer in plan.selection_layers:
                selections[layer], margin = self.select(scores[:, 0], plan)
                margins.append(margin)
            elif layer > plan.selection_layers[0]:
                sets = selections[max(selections)]
                heads_of_set = self.num_heads // len(sets)
                mask = np.full_like(scores, -np.inf)
                for head in range(self.num_heads):
                    mask[head, 0, sets[head // heads_of_set]] = 0
                scores = scores + mask
            return self.mix(layer, softmax(scores))

        logits = self.run([token_id], attend)
        return logits, selections, min(margins)
