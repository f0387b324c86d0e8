"""ChatML, the chat format for tokenizers without a chat template: in their own tokens, with tools."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from components.errors import InputError

# Tools are listed in the system message, calls are in the assistant's turn, results have their own turns; all as JSON.
CHATML = (
    "{{ START }}"
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    '{{ \'To call a function, answer <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>. Functions:\' }}'
    "{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{{ STOP + '\n' }}{% endif %}"
    "{% for message in messages %}{% if not (tools and loop.first and message['role'] == 'system') %}"
    "<|im_start|>{{ message['role'] + '\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] or not loop.first else '' }}"
    "{{ '<tool_call>\n' + ({'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson) }}"
    "{{ '\n</tool_call>' }}{% endfor %}"
    "{{ STOP + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def knows_chatml(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether ChatML's own tokens are tokens of this tokenizer, not letters."""
    return {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_added_vocab())


def chatml_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the ChatML template in the tokenizer's own tokens.

    If <|im_end|> is not one of them, the end-of-text token ends a turn: a new token would have an untrained embedding.
    If the tokenizer begins every text with a token, a conversation begins with it too: the model was trained with it.
    """
    stop = "<|im_end|>" if "<|im_end|>" in tokenizer.get_added_vocab() else tokenizer.eos_token
    if stop is None:
        raise InputError(
            "chat_format chatml: the tokenizer has neither <|im_end|> nor an end-of-text token to stop with"
        )
    begins = tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
    start = str(tokenizer.bos_token) if begins else ""
    return CHATML.replace("START", repr(start)).replace("STOP", repr(str(stop)))
