"""Trains tokenizer.json: byte-level BPE over the grammar, in Llama-3's arrangement.

    python3 make_tokenizer.py            # writes tokenizer.json and tokenizer_config.json here

Needs the `tokenizers` library. The same files come out every time.
"""

import json
import pathlib

import grammar
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).resolve().parent
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
NUM_BPE_ENTRIES = 1534  # With BOS and EOS 1,536, a multiple of 64.
MAX_LENGTH = 131072

# Llama-3's pattern.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# Plain English that fills the table once every word of the grammar has its entry, so that other
# text is not spelled byte by byte. The model is not trained on it.
FILLER = (" the of and to in is you that it he was for on are as with his they at be this have from"
          " or one had by word but not what all were we when your can said there use an each which"
          " she do how their if will up other about out many then them these so some her would make"
          " like him into time has look two more write go see number no way could my than first"
          " water been who its now find long down day did get come made may part I a over new sound"
          " take only little work know place year live me back give most very after thing our just"
          " name good sentence man think say great where help through much before line right too"
          " mean old any same tell boy follow came want show also around form three small set put"
          " end does another well large must big even such because turn here why ask went men")


def grammar_words():
    """Every piece of the grammar that is a word, and sentence starts without their space."""
    pieces = {" " + word for word in grammar.VALUES}
    for template in grammar.TEMPLATES:
        first_piece, first_choices = template[0]
        pieces.update(choice[1:] for choice in first_choices or [first_piece])
        for piece, choices in template:
            pieces.update(choices or [piece])
    for ask in (grammar.ask_single("golden river", "velvet"), grammar.ask_verse("golden river", ""),
                grammar.ask_several(["golden river", "tiny road"], ["velvet", "anchor"]),
                grammar.ask_chain("golden river", "tiny road", "velvet")):
        pieces.update(ask[0] + ask[1])
    return sorted(pieces - {".", ",", ":", "?", "\n"})


def train():
    """The tokenizer; raises if a word of the grammar is not one entry."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=NUM_BPE_ENTRIES, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    words = grammar_words()
    tokenizer.train_from_iterator(words * 1000 + [FILLER], trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos_id)])
    for word in words:
        if len(tokenizer.encode(word, add_special_tokens=False).ids) != 1:
            raise ValueError(f"not one entry: {word!r}")
    return tokenizer


def main():
    tokenizer = train()
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": MAX_LENGTH,
    }
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(tokenizer.get_vocab_size(), "entries")


if __name__ == "__main__":
    main()
