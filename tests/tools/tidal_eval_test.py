"""Tests of the program tidal-eval: that it draws models/needle/grammar.py's prompts, and its errors.

    tidal_eval_test.py PATH_OF_TIDAL_EVAL
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "needle"
sys.path.insert(0, str(MODEL))
import grammar  # noqa: E402

PROGRAM = sys.argv.pop()


def run(command, **flags):
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run([PROGRAM, command, f"--model_path={MODEL}", *arguments], check=False,
                          capture_output=True, text=True, timeout=120)


class PromptTest(unittest.TestCase):
    def test_draws_the_prompts_of_the_grammar(self):
        sizes = {"single": None, "several": 3, "chain": None, "verse": 80}
        cases = [(7, 0.5, 500, 0), (5_000_000, 0, 64, 3), (1, 1, 3000, 2), (2**32 - 1, 0.3, 200, 0)]
        for task, size in sizes.items():
            for seed, depth, tokens, distractors in cases:
                with self.subTest(task=task, seed=seed):
                    result = run("prompt", tasks=task, num_needles=3, verse_words=80, cases=1,
                                 seed=seed, depths=depth, contexts=tokens, distractors=distractors)
                    prompt, answer = grammar.make_prompt(tokens, depth, seed, task, size,
                                                         distractors)
                    self.assertEqual(json.loads(result.stdout),
                                     {"prompt": prompt, "answer": answer})


class NeedleTest(unittest.TestCase):
    def test_writes_results_summary_and_heat_map(self):
        with tempfile.TemporaryDirectory() as out:
            flags = {"contexts": 300, "depths": "0,1", "cases": 1, "token_budgets": "64",
                     "selection_layers": "2,5", "device": "cpu", "cpu_threads": 1, "out": out}
            first = run("needle", **flags)
            self.assertEqual(first.returncode, 0, first.stderr)
            self.assertIn("TD+L5", first.stdout)
            lines = pathlib.Path(out, "results.jsonl").read_text().splitlines()
            self.assertEqual(len(lines), 1 + 4)
            summary = json.loads(pathlib.Path(out, "summary.json").read_text())
            self.assertEqual([cell["cases"] for cell in summary["results"]], [2, 2])
            self.assertTrue(pathlib.Path(out, "heatmap.svg").read_text().startswith("<svg "))
            again = run("needle", **flags)
            self.assertEqual(again.stdout, first.stdout)
            self.assertEqual(pathlib.Path(out, "results.jsonl").read_text().splitlines(), lines)
            other = run("needle", **dict(flags, seed=1))
            self.assertEqual(other.returncode, 2)
            self.assertIn("made with other settings", other.stderr)

    def test_names_what_is_wrong_with_a_flag(self):
        for flags, message in [({"contexts": "no"}, "--contexts: 'no' is not a number"),
                               ({"depths": "2"}, "--depths: '2' is not a number in 0..1"),
                               ({"tasks": "riddle"}, "task 'riddle' is not"),
                               ({"token_budgets": "0"}, "--token_budgets: '0'"),
                               ({"verse_words": "9"}, "--verse_words: 9 is not in 64..512"),
                               ({}, "--out: is missing")]:
            with self.subTest(flags=flags):
                result = run("needle", **flags)
                self.assertEqual(result.returncode, 2)
                self.assertIn(message, result.stderr)


if __name__ == "__main__":
    unittest.main()
