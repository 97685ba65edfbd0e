"""Rotary embeddings of Wan against recorded tensors, properties of the Qwen ones.

Qwen's tables are compared with the recorded ones in `test_qwen3vl.py`.
"""

import numpy as np
import pytest

from motus_jax.ops import rope
from tests.parity import goldens
from tests.parity.goldens import assert_close, rel_l2


def test_wan_rotation_of_each_sample():
    """Tokens past the grid are padding, which the original leaves as it is: they do not count."""
    pieces = goldens.load("wan_dit/pieces.safetensors")
    for x, out, grid in zip(pieces["rope.x"], pieces["rope.out"], pieces["rope.grid"], strict=True):
        cos, sin = rope.wan_freqs(tuple(grid.tolist()), x.shape[-1])
        tokens = len(cos)
        assert tokens == np.prod(grid) and cos.shape == (tokens, x.shape[-1] // 2)
        actual = rope.apply_interleaved(x[None, :tokens], cos, sin)[0]
        assert_close(actual, out[:tokens], name=f"grid {grid}")
        wrong = rope.apply_halves(x[None, :tokens], cos, sin)[0]
        assert rel_l2(wrong, out[:tokens]) > 100 * goldens.ACTIVATION


def test_tables_may_differ_per_sample():
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 8)).astype(np.float32)
    tables = [rope.wan_freqs(grid, 8) for grid in ((1, 2, 3), (3, 2, 1))]
    batched = [np.stack(part) for part in zip(*tables, strict=True)]
    for apply in (rope.apply_interleaved, rope.apply_halves):
        both = apply(x, *batched)
        for i, table in enumerate(tables):
            np.testing.assert_array_equal(both[i], apply(x[i : i + 1], *table)[0])


def test_mrope_axes_of_the_published_sections():
    axes = rope.mrope_axes((24, 20, 20), 64)
    assert [int((axes == a).sum()) for a in range(3)] == [24, 20, 20]
    assert axes[:6].tolist() == [0, 1, 2, 0, 1, 2] and set(axes[60:]) == {0}


def test_merge_blocks_are_contiguous():
    rows, cols = rope.merge_block_positions((4, 6), 2)
    assert rows[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert cols[:8].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert len({*zip(rows.tolist(), cols.tolist(), strict=True)}) == 24


def test_rounded_frequencies_shift_the_phase():
    """Rounding to bfloat16 moves the phase by about 0.13 rad at position 150 of the 2B model."""
    exact = rope.qwen_inverse_frequencies(5e6, 128)
    rounded = rope.qwen_inverse_frequencies(5e6, 128, "bfloat16")
    assert rounded.dtype == np.float32 and not (rounded.view(np.uint32) & 0xFFFF).any()
    assert 0.1 < 150 * np.abs(exact - rounded).max() < 0.16
    for table in rope.vision_freqs((4, 6), 64, 2, "bfloat16"):
        assert not (table.view(np.uint32) & 0xFFFF).any()


def test_unknown_rope_dtype_is_named():
    with pytest.raises(ValueError, match="rope_dtype 'float16'"):
        rope.qwen_inverse_frequencies(1e4, 64, "float16")
