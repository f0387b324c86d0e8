"""A tokenizer with the tokens of an agent, a tool, a call of it, and a model that is made to say certain tokens."""

import json

import torch
from tokenizers import AddedToken

from tests.support.toy import letter_tokenizer

ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<mine>"]
# In the manner of Qwen: calls inside the assistant's turn, results inside a user's, both in tokens that are not special.
AGENT = (
    "{% if tools %}<|im_start|>system\nwithin <tool_call></tool_call>:{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls %}{{ '\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def agent_tokenizer(template=AGENT, *, special=()):
    tokenizer = letter_tokenizer(template)
    tokenizer.add_tokens([AddedToken(text, special=text in special, normalized=False) for text in ADDED])
    return tokenizer


# As people write it: keys in JSON schema's usual order, arguments as a JSON text.
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {
            "type": "object",
            "properties": {
                "b": {"type": "integer", "description": "the second"},
                "a": {"type": "array", "items": {"type": "integer"}},
                "unit": {"type": "string", "enum": ["m", "ft"]},
            },
            "required": ["b", "a"],
        },
    },
}
ARGUMENTS = {"b": 2, "a": [1, 2], "unit": "m"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": json.dumps(ARGUMENTS)}}
ROWS = 400  # as many as any of the tokenizers below has tokens


def speak(monkeypatch, model, *answers):
    """Makes a model say these tokens, one answer after another. Returns the prompts that it got, as it gets them."""
    prompts = []

    def generate(*, input_ids, streamer=None, **settings):
        prompts.append(input_ids[0].tolist())
        said = answers[min(len(prompts), len(answers)) - 1]
        if streamer is not None:
            for made in ([prompts[-1]], *([token] for token in said)):
                streamer.put(torch.tensor(made))
        return torch.tensor([[*prompts[-1], *said]])

    monkeypatch.setattr(model, "generate", generate)
    return prompts
