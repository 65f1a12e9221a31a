"""The model in plain PyTorch, and its Hugging Face folder: config.json and model.safetensors.

The modules carry Llama's names, so that the state dict is the checkpoint.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

BOS_ID, EOS_ID = 1534, 1535  # In tokenizer.json.
ROPE = {"rope_type": "default", "rope_theta": 500000.0}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1536,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": ROPE["rope_theta"],  # Read by transformers 4.
    "rope_scaling": None,
    "rope_parameters": ROPE,  # Read by transformers 5.
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
GENERATION_CONFIG = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": False}

HIDDEN, LAYERS = CONFIG["hidden_size"], CONFIG["num_hidden_layers"]
HEADS, KV_HEADS = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
HEAD_DIM, MLP, VOCAB = CONFIG["head_dim"], CONFIG["intermediate_size"], CONFIG["vocab_size"]


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        return F.rms_norm(x.float(), (HIDDEN,), self.weight, CONFIG["rms_norm_eps"])


def rope_table(num_positions, device):
    """(cos, sin), each [num_positions, HEAD_DIM / 2] in float32."""
    frequency = ROPE["rope_theta"] ** (-torch.arange(0, HEAD_DIM, 2, device=device) / HEAD_DIM)
    angle = torch.arange(num_positions, device=device).float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x, rope):
    """RoPE in the half-split layout. x: [..., num_positions, HEAD_DIM]."""
    cos, sin = rope
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def qkv(self, x, rope):
        """x: [batch, length, HIDDEN] -> q [batch, HEADS, length, HEAD_DIM], k and v likewise."""
        batch, length, _ = x.shape
        q, k, v = (proj(x).view(batch, length, -1, HEAD_DIM).transpose(1, 2)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, rope), rotate(k, rope), v

    def out(self, y):
        """y: [batch, HEADS, length, HEAD_DIM], the attended values."""
        batch, _, length, _ = y.shape
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM))

    def forward(self, x, rope, sparse=None, mode="full"):
        q, k, v = self.qkv(x, rope)
        group = HEADS // KV_HEADS
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if mode == "select":
            sparse.select(q, k)
        elif mode == "sparse":
            y = sparse.attend(q, k, v, y)
        return self.out(y)


class Sparse:
    """TidalDecode in one pass over a whole sequence, for training.

    Decoded positions attend, in the layers between and after the selecting ones, only to the
    `budget` positions that the last selecting layer found best for them: as when they are decoded
    one by one. All other positions are prefill, which is full attention.
    """

    FIRST_SELECTION = 2

    def __init__(self, decoded, budget, reselection):
        """decoded: [batch, length] bool, with at least one position set."""
        self.budget, self.reselection = budget, reselection
        self.row, self.position = decoded.nonzero(as_tuple=True)  # [num_decoded]
        counts = decoded.sum(1)
        first = counts.cumsum(0) - counts
        self.slot = torch.arange(len(self.row), device=decoded.device) - first[self.row]
        at = torch.zeros(len(counts), int(counts.max()), dtype=torch.long, device=decoded.device)
        at[self.row, self.slot] = self.position
        self.at = at[:, None, :, None]  # [batch, 1, slots, 1]: a row's decoded positions, then 0s.
        self.future = torch.arange(decoded.shape[1], device=decoded.device) > self.at
        self.mask = None  # [batch, HEADS, slots, length]: not selected.

    def mode(self, layer):
        if layer in (self.FIRST_SELECTION, self.reselection):
            return "select"
        return "sparse" if layer > self.FIRST_SELECTION else "full"

    def _scores(self, q, k):
        q = q.gather(2, self.at.expand(-1, HEADS, -1, HEAD_DIM))
        return (q @ k.transpose(2, 3)).float() / HEAD_DIM**0.5

    @torch.no_grad()
    def select(self, q, k):
        """Selects by probability, summed over the query heads of a KV head."""
        scores = self._scores(q, k).masked_fill_(self.future, float("-inf")).softmax(-1)
        scores = scores.unflatten(1, (KV_HEADS, -1)).sum(2)
        own = self.at.expand(-1, KV_HEADS, -1, 1)
        scores.scatter_(3, own, float("inf"))
        best = scores.topk(min(self.budget, scores.shape[-1])).indices
        mask = torch.ones_like(scores, dtype=torch.bool).scatter_(3, best, False) | self.future
        self.mask = mask.repeat_interleave(HEADS // KV_HEADS, dim=1)

    def attend(self, q, k, v, y):
        """y, but for the decoded positions the attention over the selected ones."""
        weights = self._scores(q, k).masked_fill(self.mask, float("-inf")).softmax(-1)
        selected = weights.to(v.dtype) @ v
        y = y.clone()
        y[self.row, :, self.position] = selected[self.row, :, self.slot].to(y.dtype)
        return y


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, MLP, bias=False)
        self.up_proj = nn.Linear(HIDDEN, MLP, bias=False)
        self.down_proj = nn.Linear(MLP, HIDDEN, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = RMSNorm()
        self.self_attn = Attention()
        self.post_attention_layernorm = RMSNorm()
        self.mlp = FeedForward()

    def forward(self, x, rope, *sparse):
        x = x + self.self_attn(self.input_layernorm(x), rope, *sparse)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()


class Llama(nn.Module):
    """The parameters are float32; run it under autocast for bf16 arithmetic."""

    def __init__(self):
        super().__init__()
        self.model = Decoder()
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=CONFIG["initializer_range"])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data /= (2 * LAYERS) ** 0.5

    def hidden(self, ids, sparse=None):
        """ids: [batch, length] -> normalised hidden states [batch, length, HIDDEN].

        sparse: a `Sparse` of these ids, or None for full attention everywhere.
        """
        rope = rope_table(ids.shape[1], ids.device)
        x = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, rope, sparse, sparse.mode(i)) if sparse else layer(x, rope)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)


def save(model, folder):
    """Writes the Hugging Face folder: bf16 weights, and no lm_head, which is the embedding."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to(torch.bfloat16).cpu().contiguous()
               for k, v in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    save_configs(folder)


def save_configs(folder):
    for name, settings in (("config.json", CONFIG), ("generation_config.json", GENERATION_CONFIG)):
        (pathlib.Path(folder) / name).write_text(json.dumps(settings, indent=2) + "\n")


def load(folder, device="cpu"):
    """The model of a folder, its bf16 weights widened to float32."""
    model = Llama()
    model.load_state_dict(load_file(str(pathlib.Path(folder) / "model.safetensors")))
    return model.to(device)


if __name__ == "__main__":
    save_configs(pathlib.Path(__file__).resolve().parent)
