#!/usr/bin/env python3
"""Makes the golden checkpoints: small random models, and what Hugging Face transformers computes.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install \\
        -r tests/golden/make_checkpoints.requirements.txt
    /tmp/golden/bin/python tests/golden/make_checkpoints.py [model...]

Everything is written below tests/golden/checkpoints/ (one folder a model, in Hugging Face's layout)
and to tests/golden/rope_frequencies.json. The weights come from numpy's generator with fixed seeds,
so that a new run writes the same weights; logits may differ in the last digit from machine to
machine.

golden.json, in each model's folder:
  made_with     versions of torch and transformers
  prompts       list of
    name                 what the prompt is for
    token_ids            the prompt
    logits               [vocab] at the prompt's last position, float32 arithmetic on the stored
                         weights converted to float32, 7 significant digits
    greedy_token_ids     the next 24 tokens by highest logit; end-of-sequence ids do not stop it
    min_greedy_gap       smallest difference of the two highest logits over those 24 steps

tidal_golden.json, for llama3_gqa_bf16: TidalDecode's decode steps in float64 (reference_model.py).
  prompt_token_ids       prefilled with full attention
  forced_token_ids       the input token of each decode step, whatever the logits say
  selection_layers       layers that select; the others are full below the first of them, or sparse
  full_logits            [steps][vocab] with full attention in every layer
  runs                   list of
    scope, token_budget, num_sink_tokens, num_recent_tokens
    min_margin           smallest score difference between a position chosen and one refused (raw
                         score for query_head, else relative to the chosen probability): how much
                         rounding the selections bear
    steps                list of {"logits": [vocab], "selected": [layers of selection_layers][sets]
                         [token_budget] ascending positions}; sets: query heads, KV heads, or 1

rope_frequencies.json: list of {"name", "config": a config.json, "inverse_frequencies":
[head_dim / 2] as transformers computes them in float32}.
"""

import json
import math
import os
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import reference_model

HERE = pathlib.Path(__file__).resolve().parent
NUM_GREEDY_TOKENS = 24
MIN_GREEDY_GAP = 0.02  # ten times the error that the C++ tests allow
MIN_DISTINCT_TOKENS = 8  # a model that repeats one token proves little
TIDAL_MODEL = "llama3_gqa_bf16"
TIDAL_SELECTION_LAYERS = (2, 5)
TIDAL_BUDGET = 24
TIDAL_MIN_MARGIN = 2e-4

COMMON = {"hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS = {
    "llama2_mha_fp32": dict(
        config=LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=256,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            **COMMON,
        ),
        dtype=torch.float32,
        old_spelling=True,
        seed=101,
    ),
    "llama3_gqa_bf16": dict(
        config=LlamaConfig(
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=384,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=dict(LLAMA3_ROPE),
            tie_word_embeddings=True,
            hidden_act="silu",
            bos_token_id=1,
            eos_token_id=[2, 7],
        ),
        dtype=torch.bfloat16,
        old_spelling=True,
        seed=202,
    ),
    "sharded_fp16": dict(
        config=LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=320,
            max_position_embeddings=1024,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0},
            attention_bias=True,
            mlp_bias=True,
            **COMMON,
        ),
        dtype=torch.float16,
        old_spelling=False,
        seed=303,
        max_shard_size="120KB",
    ),
    "mistral_fp32": dict(
        config=MistralConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=256,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            sliding_window=None,
            **COMMON,
        ),
        dtype=torch.float32,
        old_spelling=False,
        seed=404,
    ),
    # With heads as wide as the CUDA backend wants them.
    "heads_of_64_fp16": dict(
        config=LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            vocab_size=256,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 20000.0},
            attention_bias=True,
            mlp_bias=True,
            **COMMON,
        ),
        dtype=torch.float16,
        old_spelling=False,
        seed=505,
    ),
    "heads_of_128_bf16": dict(
        config=LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=128,
            vocab_size=256,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=dict(LLAMA3_ROPE),
            tie_word_embeddings=True,
            **COMMON,
        ),
        dtype=torch.bfloat16,
        old_spelling=True,
        seed=606,
    ),
}


def rounded(values, digits=7):
    return [float(f"{v:.{digits}g}") for v in np.asarray(values, dtype=np.float64).tolist()]


def write_json(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


def random_weights(model, seed):
    """Scales that keep activations near 1, attention neither flat nor one-hot, logits about 3."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("norm.weight"):
                values = rng.uniform(0.6, 1.4, tensor.shape)
            elif name.endswith(".bias"):
                values = rng.normal(0, 0.3, tensor.shape)
            else:
                gain = 3.0 if "embed_tokens" in name or "lm_head" in name else 1.0
                gain = 1.4 if "q_proj" in name or "k_proj" in name else gain
                values = rng.normal(0, gain / math.sqrt(tensor.shape[1]), tensor.shape)
            tensor.copy_(torch.from_numpy(values))


def respell_as_older(path):
    """config.json as releases before rope_parameters and dtype wrote it."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model(name, spec):
    folder = HERE / "checkpoints" / name
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(spec["config"], dtype=torch.float32)
    random_weights(model, spec["seed"])
    model.to(spec["dtype"]).save_pretrained(
        folder, max_shard_size=spec.get("max_shard_size", "1GB")
    )
    if spec["old_spelling"]:
        respell_as_older(folder / "config.json")
    return folder


def load_float32(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def greedy(model, token_ids):
    """Logits at the last prompt position, the next tokens, and the smallest lead of any."""
    first, generated, gap, past, inputs = None, [], math.inf, None, list(token_ids)
    for _ in range(NUM_GREEDY_TOKENS):
        with torch.no_grad():
            output = model(torch.tensor([inputs]), past_key_values=past, use_cache=True)
        logits, past = output.logits[0, -1].float().numpy(), output.past_key_values
        first = logits if first is None else first
        best, second = np.sort(logits)[::-1][:2]
        gap = min(gap, float(best - second))
        generated.append(int(logits.argmax()))
        inputs = generated[-1:]
    return first, generated, gap


def make_reference(model):
    config = model.config.to_dict()
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    weights = {n: t.detach().numpy() for n, t in model.state_dict().items()}
    return reference_model.ReferenceModel(config, weights, model.model.rotary_emb.inv_freq.numpy())


def random_prompt(rng, length, vocab_size):
    return [1] + rng.integers(3, vocab_size, length - 1).tolist()


def make_golden(folder, seed):
    model = load_float32(folder)
    prompts = []
    for name, length in [
        ("one_token", 1),
        ("short", 7),
        ("one_block", 16),
        ("block_and_one", 17),
        ("many_blocks", 301),
    ]:
        for attempt in range(200):
            rng = np.random.default_rng([seed, length, attempt])
            token_ids = random_prompt(rng, length, model.config.vocab_size)
            if length == 1:
                token_ids = [int(rng.integers(3, model.config.vocab_size))]
            logits, generated, gap = greedy(model, token_ids)
            if gap > MIN_GREEDY_GAP and len(set(generated)) >= MIN_DISTINCT_TOKENS:
                break
        else:
            raise RuntimeError(f"{folder.name}: no prompt of {length} tokens is well separated")
        error = np.abs(make_reference(model).full(token_ids) - logits).max()
        assert error < 1e-3, f"{folder.name}: the float64 reference differs by {error}"
        print(
            f"{folder.name} {name}: logits std {logits.std():.2f}, min gap {gap:.3f}, "
            f"{len(set(generated))} distinct, float64 differs by {error:.1e}"
        )
        prompts.append(
            {
                "name": name,
                "token_ids": token_ids,
                "logits": rounded(logits),
                "greedy_token_ids": generated,
                "min_greedy_gap": round(gap, 4),
            }
        )
    made_with = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    write_json(folder / "golden.json", {"made_with": made_with, "prompts": prompts})


def tidal_run(model, prompt, forced, plan):
    reference = make_reference(model)
    reference.full(prompt)
    steps, margin = [], math.inf
    for token_id in forced:
        logits, selections, step_margin = reference.tidal_step(token_id, plan)
        margin = min(margin, step_margin)
        steps.append(
            {"logits": rounded(logits), "selected": [selections[i] for i in sorted(selections)]}
        )
    return steps, margin


def make_tidal_golden(folder):
    model = load_float32(folder)
    vocab_size = model.config.vocab_size
    for attempt in range(200):
        rng = np.random.default_rng([7, attempt])
        prompt = random_prompt(rng, 200, vocab_size)
        forced = rng.integers(3, vocab_size, 8).tolist()
        runs = []
        for scope in ("query_head", "kv_head", "layer"):
            for num_sink, num_recent in ((0, 0), (2, 4)):
                plan = reference_model.TidalPlan(
                    TIDAL_SELECTION_LAYERS, scope, TIDAL_BUDGET, num_sink, num_recent
                )
                steps, margin = tidal_run(model, prompt, forced, plan)
                runs.append(
                    {
                        "scope": scope,
                        "token_budget": TIDAL_BUDGET,
                        "num_sink_tokens": num_sink,
                        "num_recent_tokens": num_recent,
                        "min_margin": float(f"{margin:.3g}"),
                        "steps": steps,
                    }
                )
                if margin < TIDAL_MIN_MARGIN:
                    break
        if len(runs) == 6 and min(run["min_margin"] for run in runs) >= TIDAL_MIN_MARGIN:
            break
    else:
        raise RuntimeError("no prompt has selections that bear rounding")
    reference = make_reference(model)
    reference.full(prompt)
    full_logits = [rounded(reference.full([token_id])) for token_id in forced]
    for run in runs:
        change = max(
            np.abs(np.subtract(s["logits"], f)).max() for s, f in zip(run["steps"], full_logits)
        )
        print(
            f"tidal {run['scope']} {run['num_sink_tokens']}/{run['num_recent_tokens']}: "
            f"attempt {attempt}, min margin {run['min_margin']:.2g}, "
            f"logits move by up to {change:.2f}"
        )
    write_json(
        folder / "tidal_golden.json",
        {
            "prompt_token_ids": prompt,
            "forced_token_ids": forced,
            "selection_layers": list(TIDAL_SELECTION_LAYERS),
            "full_logits": full_logits,
            "runs": runs,
        },
    )


def make_rope_golden():
    sizes = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    llama31 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    cases = {
        "all_defaults": {},
        "default_old_spelling": {"rope_theta": 500000.0, "rope_scaling": None},
        "default_new_spelling": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}
        },
        "linear_type": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        "linear_rope_type": {
            "rope_theta": 20000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.5},
        },
        "linear_new_spelling": {
            "rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 10000.0}
        },
        "llama_3_1_8b": {
            "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", **llama31},
        },
        "llama_3_2_1b": {
            "rope_theta": 500000.0,
            "head_dim": 64,
            "rope_scaling": {"rope_type": "llama3", **llama31, "factor": 32.0},
        },
        "llama3_new_spelling": {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **llama31}
        },
    }
    golden = []
    for name, rope in cases.items():
        config = {**sizes, **rope}
        inverse_frequencies = LlamaRotaryEmbedding(
            LlamaConfig(**json.loads(json.dumps(config)))
        ).inv_freq
        golden.append(
            {
                "name": name,
                "config": config,
                "inverse_frequencies": rounded(inverse_frequencies.numpy(), 9),
            }
        )
    write_json(HERE / "rope_frequencies.json", golden)


def main():
    torch.manual_seed(0)
    make_rope_golden()
    for name in sys.argv[1:] or MODELS:
        spec = MODELS[name]
        folder = save_model(name, spec)
        make_golden(folder, spec["seed"])
        if name == TIDAL_MODEL:
            make_tidal_golden(folder)
    total = sum(f.stat().st_size for f in (HERE / "checkpoints").rglob("*") if f.is_file())
    print(f"{total / 1e6:.2f} MB in {os.path.relpath(HERE / 'checkpoints')}")


if __name__ == "__main__":
    main()
