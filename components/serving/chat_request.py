"""A request for a chat completion as OpenAI's API has it. What would not be honored is refused by its name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from components.errors import InputError
from components.inference.generate import LEAST_TEMPERATURE, MOST_TEMPERATURE
from components.inference.token_choice import MOST_ALTERNATIVES

MOST_STOPS, MOST_STOP_CHARACTERS = 4, 200
# Fields that ask for what is not done here, and the values with which they ask for nothing.
ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "parallel_tool_calls": (None, True),
    "modalities": (None, ["text"]),
    "function_call": (None, "auto", "none"),
    "functions": (None, []),
    "tool_choice": (None, "auto", "none"),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}
# Fields that change no token: of the client's own accounting.
OF_NO_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
# Only whole numbers are; 1.0 and True are not.
Whole = Annotated[int, Field(strict=True)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(BaseModel):
    """What both kinds of requests say about how a reply is made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    temperature: float | None = Field(default=None, ge=0, le=MOST_TEMPERATURE, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Whole | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: Whole | None = Field(default=None, ge=1)
    stop: Annotated[list[str] | None, BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop)] = Field(
        default=None, max_length=MOST_STOPS
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(default=None, ge=1)

    @property
    def drawing(self) -> float:
        """The temperature: as in OpenAI's API 1 if a request says nothing."""
        return 1.0 if self.temperature is None else self.temperature


class ChatRequest(Sampling):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def reply_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    logprobs: Whole | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Texts or token ids, one or several."""
        one = isinstance(self.prompt, str) or all(isinstance(part, int) for part in self.prompt)
        return cast(list[str | list[int]], [self.prompt] if one else self.prompt)


Request = TypeVar("Request", bound=Sampling)


def parse_request(body: bytes, kind: type[Request]) -> Request:
    """Reads a request. Raises InputError with all that is wrong with it."""
    given = _json_object(body)
    problems = []
    for name in [name for name in given if name not in kind.model_fields]:
        if name in OF_NO_EFFECT or any(_same(given[name], nothing) for nothing in ASKS_FOR_NOTHING.get(name, ())):
            del given[name]
    try:
        request = kind.model_validate(given)
    except ValidationError as error:
        problems = [_sentence(one, kind) for one in error.errors(include_url=False)]
        raise InputError("; ".join(problems)) from None
    problems += _further_problems(request)
    if problems:
        raise InputError("; ".join(problems))
    return request


def _further_problems(request: Sampling) -> list[str]:
    problems = []
    if request.temperature and request.temperature < LEAST_TEMPERATURE:
        problems.append(f"temperature: must be 0 (greedy) or at least {LEAST_TEMPERATURE}, not {request.temperature}")
    for stop in request.stop or ():
        if not 0 < len(stop) <= MOST_STOP_CHARACTERS:
            problems.append(f"stop: each must have 1 to {MOST_STOP_CHARACTERS} characters, not {len(stop):,}")
    if request.stream_options is not None and not request.stream:
        problems.append("stream_options: only with stream: true")
    if isinstance(request, ChatRequest):
        if request.top_logprobs and not request.logprobs:
            problems.append("top_logprobs: only with logprobs: true")
        if request.max_tokens and request.max_completion_tokens not in (None, request.max_tokens):
            problems.append("max_tokens, max_completion_tokens: two names of one limit; give one of them")
    return problems


def _sentence(error: Any, kind: type[Sampling]) -> str:
    place = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("function-", "list[", "str")))
    if error["type"] == "extra_forbidden" or (place == "tool_choice" and error["type"] == "literal_error"):
        known = ", ".join(sorted(kind.model_fields))
        allowed = ASKS_FOR_NOTHING.get(place)
        way_out = f"leave it out, or give {_json(allowed[-1])}" if allowed else f"leave it out; known are {known}"
        return f"{place}: not supported; {way_out}"
    value = "" if error["type"] == "missing" else f", not {_shortened(error['input'])}"
    return f"{place}: {error['msg']}{value}"


def _json_object(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        given = json.loads(body, parse_constant=refuse)
        _json(given).encode()  # half of a surrogate pair, which JSON can write, is no text
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"the body is no JSON: {reason}") from None
    if not isinstance(given, dict):
        raise InputError(f"the body must be a JSON object, not {_shortened(given)}")
    return given


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shortened(value: Any) -> str:
    text = _json(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
