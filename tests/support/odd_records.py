"""Records of every kind that is read, mended, left out, cut or kept apart, for the templates of template_kinds.py."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.support.template_kinds import WORDS

SPOKEN = sorted(word for word in WORDS if len(word) > 1)


def said(drawn, least=3, most=12):
    return " ".join(drawn.choices(SPOKEN, k=drawn.randint(least, most)))


def records():
    drawn = random.Random(0)
    made: list[dict[str, Any]] = []
    for number in range(240):
        messages = [{"role": "system", "content": said(drawn)}] if number % 5 == 0 else []
        for _ in range(drawn.randint(1, 4)):
            messages.append({"role": "user", "content": said(drawn, 12, 30)})
            answer = {"role": "assistant", "content": said(drawn, 12, 30)}
            if number % 7 == 0:
                answer["weight"] = drawn.choice([0, 0.5, 2])
            if number % 3 == 0:
                answer["reasoning_content"] = said(drawn)
            messages.append(answer)
        messages[-1].pop("weight", None)
        record = {"messages": messages, "id": number}
        if number % 11 == 0:
            record["group"] = f"group {number % 4}"
        if number % 13 == 0:
            record["topic"] = drawn.choice(["a", "b"])
        made.append(record)
    for number in range(0, 40, 2):
        made.append(made[number])
        near = json.loads(json.dumps(made[number + 1]))
        near["messages"][-1]["content"] += " " + said(drawn, 1, 2)
        made.append(near)
    drawn.shuffle(made)
    made[7]["messages"].append({"role": "user", "content": "hm"})
    made[9]["messages"][-1]["content"] = said(drawn, 400, 400)
    made[12]["messages"] = [{"role": "user", "content": said(drawn, 300, 300)}, {"role": "assistant", "content": "ok"}]
    return made


def odd_lines():
    """A JSONL file of 281 lines."""
    written = [json.dumps(record) for record in records()]
    written[20] = '{"messages": [{"role": "user"'
    misspelt = "wieght"  # codespell:ignore
    messages = [{"role": "user", "content": 5}, {"role": "assistant", "content": "hi", misspelt: 2}]
    written[30] = json.dumps({"messages": messages})
    written.insert(40, "")
    return "\n".join(written) + "\n"
