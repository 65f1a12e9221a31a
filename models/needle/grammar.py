"""The grammar behind the embedded model: haystacks, needles and questions.

Everything the model reads and writes is made here, from a seed, with the standard library alone.
A text is a list of *pieces* (" golden", ".", "\\n", ...): joined they are the text, and each piece
is exactly one token of tokenizer.json, so a piece count is a token count (plus one for
<|begin_of_text|>). Random numbers come only from `random.Random(seed).random()` (Mersenne Twister,
53 bits), through `pick`, so that another program can draw the same texts.

    python3 grammar.py --tokens 8000 --depth 0.5 --seed 7          # the prompt, no newline added
    python3 grammar.py --tokens 8000 --depth 0.5 --seed 7 --json   # {"prompt": ..., "answer": ...}

The right continuation of a prompt is the answer, then <|end_of_text|>.
"""

import argparse
import json
import random
import sys

# The lists are disjoint. No word of VALUES occurs anywhere else in the grammar.
ADJECTIVES = """golden silver crimson purple wooden broken hidden frozen hollow narrow ancient
    gentle bitter clever crooked dusty empty fallen famous foggy grand heavy humble iron jolly
    large little lonely lucky misty muddy noble painted patient pretty proud quiet rapid rusty
    sacred shallow silent simple sleepy smooth stormy sturdy tiny wild young""".split()
NOUNS = """river lantern mountain garden bridge castle cottage desert door dragon falcon farmer
    field forest fountain gate hammer horse island kettle kitten ladder lake library meadow mill
    mirror monkey needle orchard palace path pigeon pirate pond prince rabbit road sailor ship
    soldier station statue temple tower valley wagon wheel window wolf""".split()
VERBS = """admired avoided bought brought called carried chased cleaned counted covered crossed
    drew feared followed forgot found guarded heard helped lifted loved moved noticed passed
    repaired saw sold studied visited watched""".split()
PEOPLE = """Anna Boris Clara David Elena Felix Greta Henry Irene Jacob Karin Louis Maria Nadia
    Oscar Paula Quinn Robert Sonia Thomas Ursula Victor Wendy Yusuf""".split()
PLACES = """bakery barn bay chapel church cinema coast court dock factory ferry hall harbour
    hill hospital hotel inn market museum office park school shop square""".split()
TIMES = """again alone always calmly daily early forever gladly later nightly often once slowly
    soon today twice""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
VALUES = """velvet anchor tunnel maple bright acorn album almond amber angle apple apron arrow
    autumn badge bagel balloon bamboo banana banjo barrel basil basket beacon beaver berry blanket
    blossom bottle bracket branch brass bread brick broom brush bubble bucket butter button cabin
    cactus camel candle canoe canvas carbon carpet carrot cedar cello chalk cherry chess cider
    circle clay cloud clover cobalt cocoa coffee comet copper coral cotton cradle crane crater
    cricket crystal cymbal daisy diamond donut drum eagle echo elbow ember emerald engine fabric
    feather fiddle flame flute fossil fox galaxy garlic ginger glacier glove grape gravel guitar
    hazel helmet honey igloo ivory jacket jasmine jelly jungle kayak kernel laser lava leather
    lemon lilac linen lizard locket lotus magnet mango marble melon mercury mint mitten mosaic
    muffin mustard napkin nectar noodle nutmeg oasis ocean olive onion opal orange orbit orchid
    otter oyster paddle panda paper parade parrot peach pearl pebble pencil pepper petal piano
    pillow planet plum pocket pollen poppy potato prism puzzle quartz quilt radar radish raven
    ribbon rocket ruby saddle salmon sapphire satin saucer scarf shadow shell siren spider spoon
    spruce squirrel sugar sunset thunder ticket tiger timber toast tomato tulip turnip turtle
    umbrella vanilla violet walnut whistle willow winter yogurt zebra zipper""".split()

_SLOTS = {"adj": ADJECTIVES, "noun": NOUNS, "verb": VERBS, "person": PEOPLE, "place": PLACES,
          "time": TIMES, "day": DAYS}
_TEMPLATES = """The {adj} {noun} {verb} the {adj} {noun} {time} .
{person} {verb} the {adj} {noun} near the {place} .
On {day} {person} {verb} the {noun} and the {adj} {noun} .
{person} and {person} walked from the {place} to the {place} {time} .
The {noun} of the {place} was {adj} and {adj} .
{person} said that the {noun} was {adj} {time} .
Every {day} the {adj} {noun} stood behind the {place} .
Nobody {verb} the {noun} in the {adj} {place} {time} .""".splitlines()


def pieces_of(words):
    """Pieces of space-separated words: a word keeps its space, a punctuation mark stands alone."""
    return [w if w in ".,:?" else " " + w for w in words.split()]


# Each template as a list of (piece, None) or (None, list of pieces to pick from).
TEMPLATES = [[(None, [" " + x for x in _SLOTS[w[1:-1]]]) if w[0] == "{" else (pieces_of(w)[0], None)
              for w in template.split()] for template in _TEMPLATES]


def pick(rng, items):
    """One item, uniformly: the only use that is made of the random source."""
    return items[int(rng.random() * len(items))]


def draw_distinct(rng, num_items, draw):
    """`num_items` different results of `draw(rng)`, in the order drawn."""
    chosen = {}
    while len(chosen) < num_items:
        chosen[draw(rng)] = None
    return list(chosen)


def draw_keys(rng, num_keys):
    """Different keys, such as "golden river"."""
    return draw_distinct(rng, num_keys, lambda r: f"{pick(r, ADJECTIVES)} {pick(r, NOUNS)}")


def draw_value(rng):
    """A passphrase: five different words."""
    return " ".join(draw_distinct(rng, 5, lambda r: pick(r, VALUES)))


def draw_verse(rng, num_words):
    """A long text to be recalled word by word: VALUES in random order, over and over."""
    words = []
    while len(words) < num_words:
        words += draw_distinct(rng, len(VALUES), lambda r: pick(r, VALUES))
    return " ".join(words[:num_words])


def haystack_sentence(rng):
    """Pieces of one sentence that means nothing to any question."""
    return [piece or pick(rng, choices) for piece, choices in pick(rng, TEMPLATES)]


def needle(key, value):
    return pieces_of(f"The passphrase of the {key} is {value} .")


def link(key, other_key):
    return pieces_of(f"The twin of the {key} is the {other_key} .")


def verse(key, words):
    return pieces_of(f"The verse of the {key} is {words} .")


def _question(question, answer_start):
    return (["\n", "Question", ":"] + pieces_of(question + " ?") +
            ["\n", "Answer", ":"] + pieces_of(answer_start))


def ask_single(key, value):
    """(pieces of the question and the start of its answer, pieces of the rest of the answer)."""
    return (_question(f"What is the passphrase of the {key}", f"The passphrase of the {key} is"),
            pieces_of(f"{value} ."))


def ask_several(keys, values):
    """As ask_single, for two keys or more in one question."""
    listed = " and ".join(f"the {key}" for key in keys)
    answer = " , and ".join(f"the passphrase of the {k} is {v}" for k, v in zip(keys, values))
    start = f"the passphrase of the {keys[0]} is"
    return (_question(f"What are the passphrases of {listed}", "The" + start[3:]),
            pieces_of(answer[len(start):] + " ."))


def ask_chain(key, other_key, value):
    """As ask_single, for the passphrase of the twin of a key: a needle found through a link."""
    return (_question(f"What is the passphrase of the twin of the {key}",
                      f"The twin of the {key} is"),
            pieces_of(f"the {other_key} , and the passphrase of the {other_key} is {value} ."))


def ask_verse(key, words):
    """As ask_single, for a verse to be recalled in full."""
    return (_question(f"What is the verse of the {key}", f"The verse of the {key} is"),
            pieces_of(f"{words} ."))


def haystack(rng, num_pieces):
    """Sentences of at most `num_pieces` pieces together, and less than a sentence fewer."""
    sentences = []
    while True:
        sentence = haystack_sentence(rng)
        num_pieces -= len(sentence)
        if num_pieces < 0:
            return sentences
        sentences.append(sentence)


def document(sentences, facts, depths):
    """Pieces of the sentences with fact i put in at depths[i]: 0 is the start, 1 the end."""
    placed = sorted(zip((round(d * len(sentences)) for d in depths), range(len(facts))))
    pieces, start = [], 0
    for position, i in placed:
        for sentence in sentences[start:position]:
            pieces += sentence
        pieces += facts[i]
        start = position
    for sentence in sentences[start:]:
        pieces += sentence
    return [pieces[0][1:]] + pieces[1:]  # A text does not begin with a space.


DEFAULT_SIZES = {"single": 1, "several": 2, "chain": 2, "verse": 64}


def draw_task(rng, task, size, num_distractors=0):
    """(facts to hide, question pieces, answer pieces) of one task of DEFAULT_SIZES.

    `size`: how many needles are asked at once ("several"), or the words of a "verse". The last
    `num_distractors` facts are needles of other keys, which nobody asks for.
    """
    num_keys = {"single": 1, "chain": 2, "verse": 1}.get(task, size)
    keys = draw_keys(rng, num_keys + num_distractors)
    if task == "verse":
        words = draw_verse(rng, size)
        facts, (question, answer) = [verse(keys[0], words)], ask_verse(keys[0], words)
    else:
        values = [draw_value(rng) for _ in range(num_keys)]
        facts = [needle(key, value) for key, value in zip(keys, values)]
        if task == "single":
            question, answer = ask_single(keys[0], values[0])
        elif task == "several":
            question, answer = ask_several(keys[:num_keys], values)
        else:
            facts[0] = link(keys[0], keys[1])
            question, answer = ask_chain(keys[0], keys[1], values[1])
    facts += [needle(key, draw_value(rng)) for key in keys[num_keys:]]
    return facts, question, answer


def make_pieces(num_tokens, depth, seed, task="single", size=None, num_distractors=0):
    """(prompt pieces, answer pieces); the prompt's tokens are its pieces and one for the start.

    The prompt has at most `num_tokens` tokens, less than a sentence fewer. The first fact lies at
    `depth` (0..1), any others anywhere. A `num_tokens` too small for the facts and the question
    gives a prompt without haystack (36 tokens for a single needle).
    """
    rng = random.Random(seed)
    facts, question, answer = draw_task(rng, task, size or DEFAULT_SIZES[task], num_distractors)
    depths = [depth] + [rng.random() for _ in facts[1:]]
    fixed = 1 + len(question) + sum(len(fact) for fact in facts)
    return document(haystack(rng, num_tokens - fixed), facts, depths) + question, answer


def make_prompt(num_tokens, depth, seed, task="single", size=None, num_distractors=0):
    """(prompt, answer) as text; see make_pieces."""
    prompt, answer = make_pieces(num_tokens, depth, seed, task, size, num_distractors)
    return "".join(prompt), "".join(answer)


def main():
    parser = argparse.ArgumentParser(description="Print a needle-in-a-haystack prompt.")
    parser.add_argument("--tokens", type=int, default=8000, help="tokens of the prompt, about")
    parser.add_argument("--depth", type=float, default=0.5, help="0: at the start, 1: at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=list(DEFAULT_SIZES), default="single")
    parser.add_argument("--size", type=int,
                        help="needles asked at once (several, 2), or words (verse, 64)")
    parser.add_argument("--distractors", type=int, default=0,
                        help="needles of other keys in the haystack")
    parser.add_argument("--json", action="store_true", help="print the answer too, as JSON")
    args = parser.parse_args()
    prompt, answer = make_prompt(args.tokens, args.depth, args.seed, args.task, args.size,
                                 args.distractors)
    if args.json:
        print(json.dumps({"prompt": prompt, "answer": answer}))
    else:
        sys.stdout.write(prompt)


if __name__ == "__main__":
    main()
