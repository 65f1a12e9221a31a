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
        asked = named[next_needle:next_needle + (2 + int(rng.random() * 2) if kind < 0.08 else 1)]
        next_needle += len(asked)
        facts = [grammar.needle(key, value) for key, value in asked]
        key, value = asked[0]
        if len(asked) > 1:
            questions.append((facts, *grammar.ask_several(*zip(*asked)), 1.0))
        elif kind < 0.16:
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
        weights += [weight] * (len(answer_ids) + 1)
        ids += question_ids + answer_ids
    return ids, labels, weights


def make_batch(shape, seed):
    """(ids int64, labels int64, weights float32), each [batch, longest row]; a seed, a batch."""
    rng = random.Random(seed)
    rows = []
    for _ in range(shape.batch):
        if rng.random() < shape.repeats:
            rows.append(repeated_row(rng, shape.length))
        else:
            rows.append(document_row(rng, shape))
    longest = max(len(ids) for ids, _, _ in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), NO_LABEL, np.int64)
    weights = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        for array, values in zip((ids, labels, weights), row):
            array[i, :len(values)] = values
    return ids, labels, weights
