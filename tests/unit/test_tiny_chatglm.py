"""The ChatGLM3 with random weights for smoke runs: its sizes."""

import pytest

from components.models.chatglm.config import glm_config
from components.models.chatglm.tiny_model import CONVERSATIONS, make_tiny, sizes


def test_a_size_is_hidden_times_layers(tmp_path):
    hidden_size, layers = sizes("128x3")
    make_tiny(tmp_path, CONVERSATIONS, hidden_size=hidden_size, layers=layers)
    config = glm_config(tmp_path)
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (128, 3, 32)


@pytest.mark.parametrize("text", ["512", "512x", "x8", "512x0", "0x8", "510x8", "512x8x2", "-512x8"])
def test_a_size_of_another_form_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match=rf"{text}: a size is HIDDENxLAYERS, e\.g\. 512x8"):
        sizes(text)
