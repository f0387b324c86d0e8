"""ChatML, the chat format of tokenizers that have none: in their own tokens, with tools."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

# Tools stand in the system message, calls in the assistant's turn and results in turns of their own, each as JSON.
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


def chatml_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The ChatML template in the tokenizer's own tokens.

    Where <|im_end|> is no token of it, its end-of-text token ends a turn: a new token would have an untrained embedding.
    Where the tokenizer begins every text with a token, a conversation begins with it, too: the model never saw one without.
    """
    stop = "<|im_end|>" if "<|im_end|>" in tokenizer.get_added_vocab() else tokenizer.eos_token
    if stop is None:
        raise ValueError(
            "chat_format chatml: the tokenizer has neither <|im_end|> nor an end-of-text token to stop with"
        )
    begins = tokenizer.bos_token_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_token_id]
    start = str(tokenizer.bos_token) if begins else ""
    return CHATML.replace("START", repr(start)).replace("STOP", repr(str(stop)))
