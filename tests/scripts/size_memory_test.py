"""scripts/size_memory.py."""

import importlib.util
import pathlib
import sys
import unittest

PATH = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "size_memory.py"
spec = importlib.util.spec_from_file_location("size_memory", PATH)
size_memory = importlib.util.module_from_spec(spec)
sys.modules["size_memory"] = size_memory
spec.loader.exec_module(size_memory)


class SizeMemoryTest(unittest.TestCase):
    def test_parameters_are_those_the_models_publish(self):
        published = {"Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824,
                     "Llama-3.1-8B": 8_030_261_248, "Mistral-7B-v0.3": 7_248_023_552,
                     "Llama-2-7B (32 KV heads)": 6_738_415_616,
                     "Llama-2-13B (40 KV heads)": 13_015_864_320,
                     "Llama-3.1-70B": 70_553_706_496}
        computed = {name: shape.num_parameters() for name, shape in size_memory.MODELS.items()}
        self.assertEqual(computed, published)

    def test_kv_bytes_follow_the_kv_heads_and_the_element(self):
        shape = size_memory.MODELS["Llama-3.1-8B"]
        self.assertEqual(shape.kv_bytes_per_token("cuda"), 2 * 32 * 8 * 128 * 2)
        self.assertEqual(shape.kv_bytes_per_token("cpu"), 2 * 32 * 8 * 128 * 4)

    def test_a_config_without_kv_heads_or_head_dim_has_the_usual_ones(self):
        shape = size_memory.Shape.from_config(
            {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
             "num_attention_heads": 4, "vocab_size": 100})
        self.assertEqual((shape.num_kv_heads, shape.head_dim), (4, 16))

    def test_sequences_take_whole_blocks(self):
        shape = size_memory.MODELS["Llama-3.1-8B"]
        block_bytes = 16 * shape.held_bytes_per_token("cuda")
        for num_blocks, context, expected in ((10, 17, 5), (10, 16, 10), (10, 161, 0)):
            cache_bytes = num_blocks * block_bytes
            self.assertEqual(size_memory.num_sequences(shape, "cuda", cache_bytes, context),
                             expected)

    def test_weights_that_do_not_fit_leave_no_cache(self):
        shape = size_memory.MODELS["Llama-3.1-70B"]
        self.assertEqual(size_memory.kv_cache_bytes(shape, "cuda", 79, 0.9, 2), 0)


if __name__ == "__main__":
    unittest.main()
