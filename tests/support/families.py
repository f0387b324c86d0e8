"""Tiny random models of many families, and models that do strange things to their inputs or logits."""

import math

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GlmConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    OPTConfig,
    PhiConfig,
)
from transformers.modeling_outputs import CausalLMOutput

from components.training.loss import ScoredModel

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
OLD = {"vocab_size": 96, "n_layer": 2, "n_head": 4, **ENDS}
OPT = {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**{name: SIZES[name] for name in SIZES if name != "vocab_size"}, "image_size": 28, "patch_size": 14}
CAP = "div, tanh, mul"
# By name: a configuration, and the operations of its logits beyond the head's.
FAMILIES = {
    "llama": (LlamaConfig(**GROUPED), ""),
    "gpt2": (GPT2Config(n_embd=32, **OLD), ""),
    "glm": (GlmConfig(**GROUPED, **ENDS, head_dim=8), ""),
    "a projection inside the decoder": (OPTConfig(**OPT, word_embed_proj_dim=16), ""),
    "bloom": (BloomConfig(hidden_size=32, **OLD), ""),
    "no attention at all": (
        MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS),
        "",
    ),
    "a bias in the head": (PhiConfig(**SIZES), ""),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=8), ""),
    "gemma3 beside its vision tower": (
        Gemma3Config(text_config={**GROUPED, "head_dim": 8}, vision_config=VISION),
        "",
    ),
    "a soft cap": (Gemma2Config(**GROUPED, head_dim=8), CAP),
    "no soft cap": (Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=None), ""),
    "cohere": (CohereConfig(**GROUPED, **ENDS), "mul"),
    "cohere with a scale of 1": (CohereConfig(**GROUPED, **ENDS, logit_scale=1.0), ""),
    "granite": (GraniteConfig(**GROUPED, logits_scaling=8.0), "div"),
    "granite with a scale of 1": (GraniteConfig(**GROUPED, logits_scaling=1.0), ""),
}


def scored_model(model, precision="fp32", attention="sdpa"):
    return ScoredModel(model, precision=precision, attention=attention, device=torch.device("cpu"))


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


class Capped(LlamaForCausalLM):  # type: ignore[misc]
    """Caps logits at 30. A tiny model's are below 0.1, so no value differs by more than float32 rounds."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits = 30 * torch.tanh(answer.logits / 30)
        return answer


class Banning(LlamaForCausalLM):  # type: ignore[misc]
    """Takes one token out, in place: nothing new is made."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits[..., 7] = -math.inf
        return answer


class OtherHead(LlamaForCausalLM):  # type: ignore[misc]
    """Answers by weights of its own, with the very operations that its head would take."""

    def __init__(self, config):
        super().__init__(config)
        self.other = nn.Linear(32, 96, bias=False)

    def forward(self, **kwargs):
        return CausalLMOutput(logits=self.other(self.model(**kwargs).last_hidden_state))


class Dropping(LlamaForCausalLM):  # type: ignore[misc]
    """Drops logits out, while it trains."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits = nn.functional.dropout(answer.logits, 0.1, self.training)
        return answer


class Scaling(LlamaForCausalLM):  # type: ignore[misc]
    """Does something to what its decoder is given."""

    def forward(self, input_ids, **kwargs):
        embeddings = 3 * self.get_input_embeddings()(input_ids) + 0.1
        return super().forward(inputs_embeds=embeddings, **kwargs)
