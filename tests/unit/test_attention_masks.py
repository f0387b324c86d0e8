"""What a token of a prefix tree sees: its own path, as far as its layer looks back along it."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Cohere2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from components.data.attention_masks import MaskForm, Reach, additive, mask_form, tree_masks
from components.data.model_inputs import model_inputs
from components.training.packed_isolation import unscored_batch

# Tokens 0-2 are a path; 3-4 continue 0-1, as do 5-6; then a second conversation of two tokens, and padding.
ENDS = torch.tensor([[7, 7, 3, 5, 5, 7, 7, 9, 9, 10]])
DEPTHS = torch.tensor([[0, 1, 2, 2, 3, 2, 3, 0, 1, 0]])
PATHS = """\
1.........
11........
111.......
11.1......
11.11.....
11...1....
11...11...
.......1..
.......11.
.........1"""
IN_A_WINDOW_OF_TWO = """\
1.........
11........
.11.......
.1.1......
...11.....
.1...1....
.....11...
.......1..
.......11.
.........1"""
IN_CHUNKS_OF_TWO = """\
1.........
11........
..1.......
...1......
...11.....
.....1....
.....11...
.......1..
.......11.
.........1"""


def drawn(mask):
    assert mask.shape == (1, 1, 10, 10)
    return "\n".join("".join("1" if seen else "." for seen in row) for row in mask[0, 0].tolist())


def tree():
    return replace(unscored_batch(torch.zeros_like(ENDS), DEPTHS), subtree_ends_BT=ENDS)


@pytest.mark.parametrize(
    ("reach", "expected"),
    [
        (Reach(), PATHS),
        (Reach(window=2), IN_A_WINDOW_OF_TWO),
        (Reach(window=4), PATHS),
        (Reach(chunk=2), IN_CHUNKS_OF_TWO),
    ],
)
def test_a_token_sees_its_path_as_far_as_its_layer_reaches(reach, expected):
    assert drawn(tree_masks(ENDS, DEPTHS, MaskForm(of_all=reach))) == expected


def test_each_kind_of_layer_gets_its_own_mask():
    form = MaskForm(by_layer_type=(("full_attention", Reach()), ("sliding_attention", Reach(window=2))))
    masks = tree_masks(ENDS, DEPTHS, form)
    assert {name: drawn(mask) for name, mask in masks.items()} == {
        "full_attention": PATHS,
        "sliding_attention": IN_A_WINDOW_OF_TWO,
    }


@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.float32, -3.4028234663852886e38), (torch.bfloat16, -(2.0**128 - 2.0**120))]
)
def test_a_mask_that_is_added_hides_by_the_least_number(dtype, least):
    seen = torch.tensor([[[[True, False], [True, True]]]])
    added = additive({"full_attention": seen}, dtype)["full_attention"]
    assert added.dtype == dtype
    assert added.tolist() == [[[[0.0, least], [0.0, 0.0]]]]


def test_only_a_tree_brings_a_mask_and_eager_attention_adds_it():
    batch = tree()
    path = replace(batch, subtree_ends_BT=None)
    for attention in ("sdpa", "eager", "flash_attention_2"):
        assert model_inputs(path, attention)["attention_mask"] is None
    assert drawn(model_inputs(batch, "sdpa", MaskForm())["attention_mask"]) == PATHS
    assert drawn(model_inputs(batch, "eager", MaskForm(), torch.bfloat16)["attention_mask"] == 0) == PATHS
    with pytest.raises(ValueError, match="flash_attention_2 takes no masks"):
        model_inputs(batch, "flash_attention_2", MaskForm())


ALTERNATING = ["sliding_attention", "full_attention"]
BY_TYPE = MaskForm(by_layer_type=(("full_attention", Reach()), ("sliding_attention", Reach(window=8))))
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
GEMMA = {**SMALL, "sliding_window": 8, "layer_types": ALTERNATING}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), MaskForm()),
        (MistralConfig(sliding_window=8), MaskForm(of_all=Reach(window=8))),
        (MistralConfig(sliding_window=None), MaskForm()),
        (Qwen2Config(sliding_window=8, use_sliding_window=False), MaskForm()),
        (
            Qwen2Config(sliding_window=8, use_sliding_window=True, num_hidden_layers=2, max_window_layers=1),
            BY_TYPE,
        ),
        (Gemma3TextConfig(**GEMMA), BY_TYPE),
        (Gemma3Config(text_config=GEMMA), BY_TYPE),
        (
            Cohere2Config(**SMALL, sliding_window=8, layer_types=["sliding_attention"] * 2),
            MaskForm(of_all=Reach(window=8)),
        ),
        (
            Llama4TextConfig(**SMALL, attention_chunk_size=8, layer_types=["chunked_attention", "full_attention"]),
            MaskForm(by_layer_type=(("chunked_attention", Reach(chunk=8)), ("full_attention", Reach()))),
        ),
    ],
)
def test_the_form_of_a_models_masks_is_in_its_config(config, expected):
    assert mask_form(config) == expected
