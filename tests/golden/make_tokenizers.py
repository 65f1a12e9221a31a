#!/usr/bin/env python3
"""Makes the tokenizer fixtures under tests/golden/tokenizers/ and what Hugging Face makes of them.

Trains small tokenizers of the kinds that Llama-family checkpoints carry, and writes, for each, the
token ids of every string of tokenizer_texts.py and the texts of random token sequences.

The slow LlamaTokenizer (SentencePiece) lives in transformers 4, which refuses today's `tokenizers`;
so there are two steps, each with its own virtual environment:

    pip install transformers==4.57.6 sentencepiece==0.2.3 protobuf
    python tests/golden/make_tokenizers.py make     # the tokenizers; expectations of tokenizer.model
    pip install tokenizers==0.23.3
    python tests/golden/make_tokenizers.py expect   # expectations of every tokenizer.json, also of
                                                    # the embedded model's (models/needle)
"""

import argparse
import io
import json
import os
import random
import shutil

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import tokenizer_texts

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "tokenizers")
EMBEDDED_MODEL = os.path.join(HERE, "..", "..", "models", "needle")

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def special(content):
    return AddedToken(content, special=True, normalized=False)


def flagged_tokens():
    """Added tokens with each of the flags that change how they match."""
    return [
        AddedToken("[LEFT]", lstrip=True, normalized=False),
        AddedToken("[RIGHT]", rstrip=True, normalized=False),
        AddedToken("[BOTH]", lstrip=True, rstrip=True, special=True, normalized=False),
        AddedToken("wholeword", single_word=True, normalized=False),
        AddedToken("two words", normalized=True),
        AddedToken("long", normalized=False),
        AddedToken("longer", normalized=False),
    ]


def template(prefix, prefix_id):
    return processors.TemplateProcessing(
        single=f"{prefix} $A",
        pair=f"{prefix} $A {prefix}:1 $B:1",
        special_tokens=[(prefix, prefix_id)],
    )


def train_byte_level(tokenizer, vocab_size, specials):
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(tokenizer_texts.training_lines(), trainer)
    tokenizer.decoder = decoders.ByteLevel()


def without_vocabulary_entries(tokenizer, keep):
    """Drops `keep`'s complement from the merges only, so that some tokens are reachable by ignore_merges alone."""
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"] = [m for i, m in enumerate(state["model"]["merges"]) if keep(i)]
    return Tokenizer.from_str(json.dumps(state))


def make_llama3():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train_byte_level(tokenizer, 1500, [])
    tokenizer = without_vocabulary_entries(tokenizer, lambda i: i % 17 != 5)
    tokenizer.add_special_tokens(
        [
            special(t)
            for t in [
                "<|begin_of_text|>",
                "<|end_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eot_id|>",
            ]
        ]
    )
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>", begin)]
    )
    return tokenizer


def make_gpt2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    train_byte_level(tokenizer, 1200, [special("<|endoftext|>")])
    tokenizer.add_tokens(flagged_tokens())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_prefix_space():
    """Digits and a prefix space before byte-level, as in several small Llama-architecture models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    train_byte_level(tokenizer, 700, [special("<|endoftext|>")])
    return tokenizer


def make_o200k():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(O200K_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train_byte_level(tokenizer, 900, [special("<s>"), special("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[
            ("<s>", tokenizer.token_to_id("<s>")),
            ("</s>", tokenizer.token_to_id("</s>")),
        ],
    )
    return tokenizer


def make_plain_split():
    """A literal Split that merges with what precedes it, no byte fallback, and unknown tokens that fuse."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        "▁", behavior="merged_with_previous", invert=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=[special("<unk>")], limit_alphabet=90
    )
    tokenizer.train_from_iterator(tokenizer_texts.training_lines(), trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_tokens(flagged_tokens())
    return tokenizer


def train_sentencepiece():
    import sentencepiece  # "make" only

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tokenizer_texts.training_lines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def write_sentencepiece(name, model, legacy):
    folder = os.path.join(FIXTURES, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as file:
        file.write(model)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump(
            {
                "tokenizer_class": "LlamaTokenizer",
                "legacy": legacy,
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": {"content": "<s>", "special": True},
                "eos_token": "</s>",
                "unk_token": "<unk>",
            },
            file,
            indent=1,
        )


def make_llama2(legacy, tuple_merges, add_flagged):
    """As transformers converts Llama-2's tokenizer.model: legacy is the Prepend/Replace spelling, else Metaspace."""
    from transformers import LlamaTokenizer  # "make" only
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    slow = LlamaTokenizer(os.path.join(FIXTURES, "sentencepiece", "tokenizer.model"), legacy=legacy)
    tokenizer = convert_slow_tokenizer(slow)
    tokenizer.post_processor = template("<s>", 1)
    if add_flagged:
        tokenizer.add_tokens(flagged_tokens())
    state = json.loads(tokenizer.to_str())
    if not tuple_merges:
        state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(state)), state


def write_tokenizer(name, tokenizer, state=None):
    folder = os.path.join(FIXTURES, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w") as file:
        json.dump(
            state or json.loads(tokenizer.to_str()), file, ensure_ascii=False, separators=(",", ":")
        )
        file.write("\n")


def make_all():
    shutil.rmtree(FIXTURES, ignore_errors=True)
    write_tokenizer("llama3", make_llama3())
    write_tokenizer("gpt2", make_gpt2())
    write_tokenizer("prefix_space", make_prefix_space())
    write_tokenizer("o200k", make_o200k())
    write_tokenizer("plain_split", make_plain_split())
    model = train_sentencepiece()
    write_sentencepiece("sentencepiece", model, legacy=True)
    write_sentencepiece("sentencepiece_not_legacy", model, legacy=False)
    write_tokenizer(
        "llama2_prepend", *make_llama2(legacy=True, tuple_merges=False, add_flagged=True)
    )
    write_tokenizer(
        "llama2_metaspace", *make_llama2(legacy=False, tuple_merges=True, add_flagged=False)
    )


class Reference:
    """One interface over `tokenizers` and the slow LlamaTokenizer."""

    def __init__(self, folder):
        path = os.path.join(folder, "tokenizer.json")
        self.fast = Tokenizer.from_file(path) if os.path.exists(path) else None
        if not self.fast:
            from transformers import LlamaTokenizer  # "make" only
            with open(os.path.join(folder, "tokenizer_config.json")) as file:
                self.slow = LlamaTokenizer(
                    os.path.join(folder, "tokenizer.model"), legacy=json.load(file)["legacy"]
                )
        self.vocab_size = (
            max(self.fast.get_vocab().values()) + 1 if self.fast else self.slow.vocab_size
        )

    def encode(self, text, add_special_tokens=True, parse_special_tokens=True):
        if self.fast:
            self.fast.encode_special_tokens = not parse_special_tokens
            return self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        return self.slow.encode(
            text,
            add_special_tokens=add_special_tokens,
            split_special_tokens=not parse_special_tokens,
        )

    def decode(self, ids, skip_special_tokens):
        if self.fast:
            return self.fast.decode(ids, skip_special_tokens=skip_special_tokens)
        return self.slow.decode(ids, skip_special_tokens=skip_special_tokens)


def expectations(folder, texts):
    reference = Reference(folder)
    rng = random.Random(5)
    encoded, unparsed, decoded = [], {}, []
    for index, text in enumerate(texts):
        ids = reference.encode(text)
        encoded.append(ids)
        raw = reference.encode(text, add_special_tokens=False, parse_special_tokens=False)
        if raw != reference.encode(text, add_special_tokens=False):
            unparsed[str(index)] = raw
        # null: the text itself.
        decoded.append(
            [
                None if d == text else d
                for d in (reference.decode(ids, False), reference.decode(ids, True))
            ]
        )
    sequences = [
        [rng.randrange(reference.vocab_size) for _ in range(rng.randrange(1, 12))]
        for _ in range(120)
    ]
    # Ids below 300 are mostly single bytes: malformed UTF-8.
    sequences += [[rng.randrange(300) for _ in range(rng.randrange(1, 12))] for _ in range(120)]
    return {
        "vocab_size": reference.vocab_size,
        "encode": encoded,
        "plain": [reference.encode(text, add_special_tokens=False) for text in texts[:40]],
        "unparsed": unparsed,
        "decode": decoded,
        "sequences": [
            [ids, reference.decode(list(ids), False), reference.decode(list(ids), True)]
            for ids in sequences
        ],
    }


def write_expectations(folder, texts, path):
    with open(path, "w") as file:
        json.dump(expectations(folder, texts), file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["make", "expect"])
    step = parser.parse_args().step
    if step == "make":
        make_all()
    texts = tokenizer_texts.all_strings()
    with open(os.path.join(FIXTURES, "texts.json"), "w") as file:
        json.dump(texts, file, ensure_ascii=False, indent=0)
        file.write("\n")
    for name in sorted(os.listdir(FIXTURES)):
        folder = os.path.join(FIXTURES, name)
        made_by = {"make": "tokenizer.model", "expect": "tokenizer.json"}[step]
        if os.path.exists(os.path.join(folder, made_by)):
            write_expectations(folder, texts, os.path.join(folder, "expected.json"))
    if step == "expect":
        os.makedirs(os.path.join(FIXTURES, "needle"), exist_ok=True)
        write_expectations(EMBEDDED_MODEL, texts, os.path.join(FIXTURES, "needle", "expected.json"))


if __name__ == "__main__":
    main()
