"""The transformers cache on small random models: against transformers' own cache."""

import unittest

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kvturbo.transformers import KvturboCache

# A random model's logits are as far off as its values, and three-bit values by 0.18 of their size (docs/algorithm.md, section 7).
VALUE_ERROR = 0.18


def small_model(attention):
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=300, hidden_size=256, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=64, attn_implementation=attention)
    return LlamaForCausalLM(config).eval()


def logits_in_steps(model, tokens, cache, steps, attention_mask=None):
    """Logits of all tokens, fed in pieces of those sizes."""
    parts, at = [], 0
    with torch.no_grad():
        for n in steps:
            mask = None if attention_mask is None else attention_mask[:, : at + n]
            parts.append(model(tokens[:, at : at + n], cache=cache, attention_mask=mask).logits)
            at += n
    return torch.cat(parts, dim=1)


class Cache(unittest.TestCase):
    STEPS = (100, 1, 1, 30, 1)  # a prompt, single tokens, and a chunk in the middle

    def setUp(self):
        self.stock = small_model("sdpa")
        self.tokens = torch.randint(300, (2, sum(self.STEPS)), generator=torch.Generator().manual_seed(2))

    def assert_near(self, got, wanted, tolerance):
        self.assertLess(float((got - wanted).norm() / wanted.norm()), tolerance)

    def test_f16_is_exact_within_fp16(self):
        wanted = logits_in_steps(self.stock, self.tokens, DynamicCache(), self.STEPS)
        for attention in ("sdpa", "kvturbo"):
            model = small_model(attention)
            got = logits_in_steps(model, self.tokens, KvturboCache(model.config, "f16"), self.STEPS)
            self.assert_near(got, wanted, 2e-3)

    def test_codes_on_both_paths(self):
        wanted = logits_in_steps(self.stock, self.tokens, DynamicCache(), self.STEPS)
        for attention in ("sdpa", "kvturbo"):
            model = small_model(attention)
            cache = KvturboCache(model.config, "k4v3")
            got = logits_in_steps(model, self.tokens, cache, self.STEPS)
            self.assert_near(got, wanted, VALUE_ERROR)
            without_exact_rows = KvturboCache(model.config, "k4v3", recent=0, sinks=0)
            without = logits_in_steps(model, self.tokens, without_exact_rows, self.STEPS)
            self.assertLess((got - wanted).norm(), (without - wanted).norm())
            self.assertEqual(cache.get_seq_length(), sum(self.STEPS))
            self.assertLess(cache.nbytes, 3 * 2 * 2 * 2 * 64 * 2 * sum(self.STEPS))  # fp16

    def test_means_follow_the_text(self):
        """Beyond 512 tokens, the second mean is learnt from the first 512; the result stays near, on both paths and from any pieces."""
        tokens = torch.randint(300, (1, 600), generator=torch.Generator().manual_seed(3))
        wanted = logits_in_steps(self.stock, tokens, DynamicCache(), (600,))
        for attention, steps in (("kvturbo", (600,)), ("kvturbo", (500, 40, 60)), ("sdpa", (500, 12, 88))):
            model = small_model(attention)
            cache = KvturboCache(model.config)
            self.assert_near(logits_in_steps(model, tokens, cache, steps), wanted, VALUE_ERROR)
            self.assertEqual(cache.layers[0].means.codes.shape[2], 2)

    def test_left_padding(self):
        mask = torch.ones_like(self.tokens)
        mask[0, :40] = 0
        wanted = logits_in_steps(self.stock, self.tokens, DynamicCache(), self.STEPS, mask)
        model = small_model("kvturbo")
        got = logits_in_steps(model, self.tokens, KvturboCache(model.config, "f16"), self.STEPS, mask)
        self.assert_near(got[0, 40:], wanted[0, 40:], 2e-3)
        self.assert_near(got[1], wanted[1], 2e-3)

    def test_crop_forgets_tokens(self):
        model = small_model("kvturbo")
        cache = KvturboCache(model.config)
        logits_in_steps(model, self.tokens, cache, (120,))
        cache.crop(-20)
        again = logits_in_steps(model, self.tokens[:, 100:], cache, (1,))
        fresh = logits_in_steps(model, self.tokens, KvturboCache(model.config), (100, 1))[:, -1:]
        # Not the same: the keys' mean was learnt from 120 tokens, and fewer of the newest rows are exact.
        self.assert_near(again, fresh, VALUE_ERROR)
        self.assertEqual(cache.get_seq_length(), 101)

    def test_beams(self):
        prompt = self.tokens[:1, :30]
        settings = dict(max_new_tokens=8, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=None)
        model = small_model("kvturbo")
        wanted = self.stock.generate(prompt, **settings)
        got = model.generate(prompt, cache=KvturboCache(model.config, "f16"), **settings)
        self.assertTrue(torch.equal(got, wanted))

    def test_refusals(self):
        model = small_model("kvturbo")
        with self.assertRaisesRegex(ValueError, "cache=KvturboCache"):
            model(self.tokens, cache=DynamicCache())
        config = LlamaConfig(num_hidden_layers=1)
        config.layer_types = ["linear_attention"]
        with self.assertRaisesRegex(ValueError, "linear_attention"):
            KvturboCache(config)


if __name__ == "__main__":
    unittest.main()
