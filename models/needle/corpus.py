"""Training rows: documents of the grammar as token ids, with labels and answer weights.

A row holds many needles and several questions. After the full stop of every answer the label is
<|end_of_text|>, although the text may go on with a newline and another question: so the model
learns to stop, and never that a question follows by itself.
"""

import dataclasses
import json
import pathlib
import random

import grammar
import numpy as np
from model import BOS_ID, EOS_ID

NO_LABEL = -1
FIRST_WORD_WEIGHT = 3.0  # Which needle it is shows in a passphrase's first word.
VERSE_WEIGHT = 0.1  # Of a verse's word against a passphrase's: there are many more of them.


@dataclasses.dataclass(frozen=True)
class Shape:
    """One kind of batch. Rows have min_length..length tokens and are padded at the end."""

    length: int
    batch: int
    max_needles: int
    max_questions: int
    min_length: int
    repeats: float = 0.0  # Share of rows that are a repeated random string.
    bridge: float = 0.0  # Share of rows of things like needles, each said twice or more.
    restated: float = 0.0  # Share of rows of needles alone, each said twice or more.
    compound: float = 0.0  # Share of questions for several needles, or through a link.
    verse: float = 0.0  # Share of rows with a verse to be recalled.
    max_verse: int = 0  # Words.


def load_vocabulary():
    """Token id of every piece of the grammar."""
    path = pathlib.Path(__file__).resolve().parent / "tokenizer.json"
    vocab = json.loads(path.read_text())["model"]["vocab"]
    return {token.replace("Ġ", " ").replace("Ċ", "\n"): i for token, i in vocab.items()}


VOCABULARY = load_vocabulary()


def encode(pieces):
    return [VOCABULARY[piece] for piece in pieces]


def repeated_row(rng, length):
    """A random string over a small alphabet, again and again; no answers to weigh."""
    alphabet = [int(rng.random() * len(VOCABULARY)) for _ in range(8 + int(rng.random() * 120))]
    period = 8 + int(rng.random() * (length // 3))
    string = [grammar.pick(rng, alphabet) for _ in range(period)]
    ids = [BOS_ID] + (string * (length // period + 1))[:length - 1]
    return ids, ids[1:] + [NO_LABEL], [0.0] * length


BRIDGE_PREFIXES = [encode(grammar.pieces_of(text)) for text in
                   ("", "the", "of the", "passphrase of the", "The passphrase of the")]
BRIDGE_SEPARATORS = [encode(grammar.pieces_of(text)) for text in ("", "is", "is", "was")]


def bridge_row(rng, length):
    """Keys and values in ever the same frame, over and over: a needle with less around it.

    The frame is cut out of a needle's or made of it, and keys are one or two words of the grammar
    or any tokens: from the repeated strings to the needles in small steps.
    """
    def random_token(r):
        return int(r.random() * len(VOCABULARY))

    def draw_key(r):
        adjective, noun = encode(grammar.pieces_of(grammar.draw_keys(r, 1)[0]))
        return {0: (noun,), 1: (adjective, noun), 2: (adjective, noun), 3: (random_token(r),),
                4: (random_token(r), random_token(r))}[kind]

    prefix, kind = grammar.pick(rng, BRIDGE_PREFIXES), int(rng.random() * 5)
    separator = grammar.pick(rng, BRIDGE_SEPARATORS + [[random_token(rng)]])
    num_facts, num_words = 2 + int(rng.random() * 9), 1 + int(rng.random() * 5)
    facts = []
    for key in grammar.draw_distinct(rng, num_facts, draw_key):
        value = encode(grammar.pieces_of(grammar.draw_value(rng)))[:num_words]
        facts.append((prefix + list(key) + separator, value + encode(["."])))
    return _over_and_over(rng, length, facts)


def _over_and_over(rng, length, facts):
    """A row of facts, (ids before the value, ids of the value and the full stop)."""
    ids, weights, first_time = [BOS_ID], [], True
    while len(ids) < length:
        for i in grammar.draw_distinct(rng, len(facts), lambda r: int(r.random() * len(facts))):
            before, value = facts[i]
            ids += before + value
            weights += [0.0] * len(before)
            weights += ([0.0] * len(value) if first_time else
                        [FIRST_WORD_WEIGHT] + [1.0] * (len(value) - 1))
        first_time = False
    return ids[:length], ids[1:length] + [NO_LABEL], weights[:length - 1] + [0.0]


def restated_row(rng, length):
    """A few needles in random order, over and over; weighed from the second time on."""
    num_needles = 2 + int(rng.random() * max(1, length // 13 // 2 - 1))
    facts = [encode(grammar.needle(key, grammar.draw_value(rng)))
             for key in grammar.draw_keys(rng, num_needles)]
    return _over_and_over(rng, length, [(fact[:-6], fact[-6:]) for fact in facts])


def draw_questions(rng, shape):
    """A list of (facts, question, answer, weight) for one row, and the needles nobody asks for."""
    num_needles = max(1, round(shape.max_needles * (0.05 + 0.95 * rng.random())))
    num_questions = 1 + int(rng.random() * min(num_needles, shape.max_questions))
    keys = grammar.draw_keys(rng, 2 * num_needles + 1)
    named = [(key, grammar.draw_value(rng)) for key in keys[:num_needles]]
    spare_keys = keys[num_needles:]
    questions, next_needle = [], 0
    if rng.random() < shape.verse:
        longest = 8 + (shape.max_verse - 8) * rng.random() ** 2
        words = grammar.draw_verse(rng, 8 + int(rng.random() * (longest - 8)))
        key = spare_keys.pop()
        questions.append(([grammar.verse(key, words)], *grammar.ask_verse(key, words),
                          VERSE_WEIGHT))
    while len(questions) < num_questions and next_needle < num_needles:
        kind = rng.random()
        num_asked = 2 + int(rng.random() * 2) if kind < shape.compound / 2 else 1
        asked = named[next_needle:next_needle + num_asked]
        next_needle += len(asked)
        facts = [grammar.needle(key, value) for key, value in asked]
        key, value = asked[0]
        if len(asked) > 1:
            questions.append((facts, *grammar.ask_several(*zip(*asked)), 1.0))
        elif shape.compound / 2 <= kind < shape.compound:
            other = spare_keys.pop()
            facts.append(grammar.link(other, key))
            questions.append((facts, *grammar.ask_chain(other, key, value), 1.0))
        else:
            questions.append((facts, *grammar.ask_single(key, value), 1.0))
    return questions, [grammar.needle(key, value) for key, value in named[next_needle:]]


def document_row(rng, shape):
    """(ids, labels, answer weights) of a document with questions; labels[i] follows ids[i]."""
    length = shape.min_length + int(rng.random() * (shape.length + 1 - shape.min_length))
    questions, unasked = draw_questions(rng, shape)
    room = length - 1
    facts, kept = [], []
    for question in questions:
        cost = sum(map(len, question[0])) + len(question[1]) + len(question[2])
        if cost <= room:
            room -= cost
            facts += question[0]
            kept.append(question)
    if not kept:  # Too short for what was drawn.
        question = (*grammar.draw_task(rng, "single", 1), 1.0)
        room -= sum(map(len, question[0])) + len(question[1]) + len(question[2])
        facts += question[0]
        kept.append(question)
    for fact in unasked:
        if len(fact) <= room:
            room -= len(fact)
            facts.append(fact)
    for i in range(len(kept) - 1, 0, -1):  # The verse is not always asked first.
        j = int(rng.random() * (i + 1))
        kept[i], kept[j] = kept[j], kept[i]
    depths = [rng.random() for _ in facts]
    ids = [BOS_ID] + encode(grammar.document(grammar.haystack(rng, room), facts, depths))
    labels, weights = ids[1:], [0.0] * (len(ids) - 1)
    for _, question, answer, weight in kept:
        question_ids, answer_ids = encode(question), encode(answer)
        if len(labels) == len(ids):  # The newline after an answer is nobody's label.
            labels += question_ids[1:]
            weights += [0.0] * (len(question_ids) - 1)
        else:
            labels += question_ids
            weights += [0.0] * len(question_ids)
        labels += answer_ids + [EOS_ID]
        weights += [weight * FIRST_WORD_WEIGHT] + [weight] * len(answer_ids)
        ids += question_ids + answer_ids
    return ids, labels, weights


def make_row(rng, shape):
    kind = rng.random()
    if kind < shape.repeats:
        return repeated_row(rng, shape.length)
    kind -= shape.repeats
    if kind < shape.bridge:
        return bridge_row(rng, shape.length)
    kind -= shape.bridge
    if kind < shape.restated:
        return restated_row(rng, shape.length)
    return document_row(rng, shape)


def make_batch(shape, seed):
    """(ids int64, labels int64, weights float32), each [batch, row length]; a seed, a batch.

    The row length is a multiple of an eighth of the shape's, so that few sizes occur.
    """
    rng = random.Random(seed)
    rows = [make_row(rng, shape) for _ in range(shape.batch)]
    unit = shape.length // 8
    longest = -(-max(len(ids) for ids, _, _ in rows) // unit) * unit
    ids = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), NO_LABEL, np.int64)
    weights = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        for array, values in zip((ids, labels, weights), row):
            array[i, :len(values)] = values
    return ids, labels, weights
