"""Which chat templates, as models are shipped with them, this house trains on; and how many tokens one pass has.

    python experiments/benchmarks/shipped_templates.py --write experiments/benchmarks/shipped_templates.md

The templates are those that two packages carry. pip fetches both into a folder that is deleted again; their digests are
pinned. Each template gets a tokenizer with the control tokens that it writes. Text is split as a tokenizer splits it that was
trained on the templates themselves, so numbers of tokens can be compared with each other, not with a model's.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation, sequences_of
from components.conversations.messages import Conversation, Message
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

FETCH_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package that carries chat templates in a folder. Nothing of it is imported."""

    package: str
    version: str
    sha256: str
    folder: str


WHEELS = (
    Wheel(
        "axolotl",
        "0.19.0",
        "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
        "axolotl/utils/chat_templates/templates/",
    ),
    Wheel("trl", "1.16.0", "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396", "trl/chat_templates/"),
)

# Control tokens, as the templates write them: <|im_end|>, <|turn>, <turn|>, <｜User｜>, [INST], [|user|], </s>.
CONTROL = re.compile(
    r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|<｜[^<>｜]+｜>|\[\|\w+\|\]|\[/?(?:[A-Z]{3,}(?:_[A-Z]+)*|gMASK)\]"
    r"|<(?:start_of_turn|end_of_turn|end_of_utterance|start_of_image|sop)>|</?s>"
)
# Added to vocabularies, but not special.
ADDED = re.compile(r"</?(?:think|tool_call|tool_response|arg_key|arg_value)>")
# The token that ends a turn, so that the model's configuration names it; the first that a template writes is the model's.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "[|endofturn|]",
    "<end_of_utterance>",
)
BEGIN, TEXT_END, PAD = "<|bos|>", "<|endoftext|>", "<|pad|>"

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "its name"}},
            "required": ["town"],
        },
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm"}}}
QUESTIONS = (Message(role="user", content="Is it warm in Ulm today?"), Message(role="user", content="And tomorrow?"))
ANSWERS = (
    Message(role="assistant", content="Yes, and sunny in the evening."),
    Message(role="assistant", content="It will rain."),
)
THOUGHTS = ("The user asks about the weather.", "They ask about the day after.")
THOUGHTFUL = [replace(answer, reasoning_content=thought) for answer, thought in zip(ANSWERS, THOUGHTS, strict=True)]
TALKS: dict[str, Conversation] = {
    "one turn": Conversation(messages=(QUESTIONS[0], ANSWERS[0])),
    "two turns": Conversation(messages=(QUESTIONS[0], ANSWERS[0], QUESTIONS[1], ANSWERS[1])),
    "system": Conversation(
        messages=(
            Message(role="system", content="Answer in one line."),
            QUESTIONS[0],
            ANSWERS[0],
            QUESTIONS[1],
            ANSWERS[1],
        )
    ),
    "tools": Conversation(
        messages=(
            QUESTIONS[0],
            Message(role="assistant", content="", tool_calls=(CALL,)),
            Message(role="tool", content="27 degrees", tool_call_id="call00001", name="weather"),
            ANSWERS[0],
        ),
        tools=(TOOL,),
    ),
    "reasoning": Conversation(messages=(QUESTIONS[0], THOUGHTFUL[0], QUESTIONS[1], THOUGHTFUL[1])),
}
# Reasons that lie in the template: it raises an error itself, has no place for something, opens a thought that the data has
# not, or writes no control token behind answers.
OWN_REASONS = re.compile(
    r"the chat template of \w+ refuses it: |does not show (?:its|'\w+')|has no such role|the prompt opens one"
    r"|no stop token ends an assistant turn"
)
WAY_OUT = re.compile(r"chat_template_arguments: \{(\w+): (true|false)\}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A conversation's tokens in one pass and in separate rows; or why it is refused. `arguments`: those it needed."""

    in_one_pass: int = 0
    separate: int = 0
    refusal: str = ""
    arguments: tuple[tuple[str, bool], ...] = ()

    @property
    def shape(self) -> str:
        return "refused" if self.refusal else "path" if self.in_one_pass == self.separate else "tree"


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one template."""

    name: str
    outcomes: dict[str, Outcome]
    stops: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="templates with this in their name, and all their reasons"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnwise-templates-") as folder:
        templates = {wheel: templates_of(fetch(wheel, Path(folder)), wheel) for wheel in WHEELS}
    backend = text_tokenizer([text for found in templates.values() for text in found.values()])
    rows = {
        wheel: [row_of(name, text, backend) for name, text in found.items() if arguments.only in name]
        for wheel, found in templates.items()
    }
    table = markdown(rows)
    print(table)
    if arguments.write:
        arguments.write.write_text(table, encoding="utf-8")


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Returns the wheel's file. Ends the program if it cannot be fetched, or is another than the pinned one."""
    what = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary", ":all:"]
    try:
        subprocess.run([*command, "--dest", str(folder), what], check=True, timeout=FETCH_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        sys.exit(f"{what} cannot be fetched, so nothing was measured: {error}")
    (file,) = folder.glob(f"{wheel.package}-*.whl")
    if (digest := hashlib.sha256(file.read_bytes()).hexdigest()) != wheel.sha256:
        sys.exit(f"{file.name} is not the one that this program knows: sha256 {digest}, not {wheel.sha256}")
    return file


def templates_of(file: Path, wheel: Wheel) -> dict[str, str]:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.startswith(wheel.folder) and name.endswith(".jinja")]
        return {Path(name).stem: archive.read(name).decode("utf-8") for name in sorted(names)}


def text_tokenizer(texts: Sequence[str]) -> str:
    """Returns the JSON of a byte-level tokenizer that was trained on these texts; it splits words as GPT-2 does."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False))
    return str(tokenizer.to_str())


def tokenizer_of(template: str, backend: str) -> PreTrainedTokenizerBase:
    """Returns a tokenizer in which each control token that the template writes is one."""
    special = sorted(set(CONTROL.findall(template)) | {TEXT_END})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend),
        bos_token=BEGIN,
        eos_token=end_of(template),
        pad_token=PAD,
        additional_special_tokens=special,
        chat_template=template,
    )
    added = sorted(set(ADDED.findall(template)))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer


def end_of(template: str) -> str:
    """Returns the model's end token: the one it writes by its purpose is the end of text."""
    written = [end for end in ENDS if end in template]
    return TEXT_END if "eos_token" in template or not written else written[0]


def row_of(name: str, template: str, backend: str) -> Row:
    tokenizer = tokenizer_of(template, backend)
    outcomes = {talk: outcome_of(tokenizer, conversation) for talk, conversation in TALKS.items()}
    try:
        stops = load_chat_format(tokenizer).stop_token_ids
    except InputError:
        stops = ()
    return Row(name, outcomes, tuple(tokenizer.convert_ids_to_tokens(list(stops))))


def outcome_of(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **arguments: bool) -> Outcome:
    """Renders a conversation; if the refusal names an argument of the template as a way out, with that argument."""
    try:
        chat_format = load_chat_format(tokenizer, ChatFormatSpec(arguments=arguments))
        rendered = chat_format.render(conversation)
    except InputError as error:
        way_out = WAY_OUT.search(str(error))
        if way_out and not arguments:
            return outcome_of(tokenizer, conversation, **{way_out[1]: way_out[2] == "true"})
        return Outcome(refusal=str(error).removeprefix("conversation: "), arguments=tuple(arguments.items()))
    check_prompts(chat_format, conversation, rendered)
    separate = sum(sequence.length for sequence in sequences_of(len(rendered.token_ids), rendered.forks))
    return Outcome(len(rendered.token_ids), separate, arguments=tuple(arguments.items()))


def check_prompts(chat_format: ChatFormat, conversation: Conversation, rendered: RenderedConversation) -> None:
    """Ends the program if an answer does not follow the very prompt that it has in use."""
    answers = [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    for place, sequence in zip(answers, turns_of(rendered), strict=True):
        prompt = chat_format.prompt(conversation.messages[:place], conversation.tools)
        if sequence[: len(prompt)] != prompt:
            sys.exit(f"{chat_format.decode(sequence)!r} does not begin with its prompt {chat_format.decode(prompt)!r}")


def turns_of(rendered: RenderedConversation) -> Iterator[list[int]]:
    """Yields the tokens up to the end of each scored turn, along their path."""
    starts = {fork.start: fork.depth for fork in rendered.forks}
    path: list[int] = []
    for number, token in enumerate(rendered.token_ids, start=1):
        if number - 1 in starts:
            del path[starts[number - 1] :]
        path.append(token)
        if number in rendered.turn_ends:
            yield list(path)


def markdown(rows: dict[Wheel, list[Row]]) -> str:
    reasons = letters_of([reason for of_wheel in rows.values() for reason in refusals_of(of_wheel)])
    lines = [
        "# Chat templates as they are shipped",
        "",
        f"{date.today()}, transformers {transformers.__version__}, Python {platform.python_version()}.",
        "Made by `python experiments/benchmarks/shipped_templates.py --write experiments/benchmarks/shipped_templates.md`.",
        *(f"{wheel.package} {wheel.version}: sha256 {wheel.sha256}." for wheel in rows),
        "",
        "A number is the tokens of the conversation, which is a path. `a of b`: a tree of a tokens in one pass, b in separate"
        " rows. `r1`: refused, for the reason below. Behind it: the template's arguments that a refusal named.",
        "Every answer of a loaded conversation follows the very tokens that `prompt()` gives at chat time.",
        "",
    ]
    for wheel, of_wheel in rows.items():
        lines += [f"## {wheel.package} {wheel.version}", "", totals(of_wheel), ""]
        lines += [f"| template | {' | '.join(TALKS)} | stops |", f"|---|{'---|' * len(TALKS)}---|"]
        lines += [f"| {row.name} | {' | '.join(cells(row, reasons))} | {stops_of(row)} |" for row in of_wheel]
        lines.append("")
    lines += ["## Reasons", "", *(f"- {letter}: {escaped(reason)}" for reason, letter in reasons.items()), ""]
    return "\n".join(lines)


def refusals_of(rows: Sequence[Row]) -> list[str]:
    """Returns the refusal of each conversation; "" if there is none."""
    return [outcome.refusal for row in rows for outcome in row.outcomes.values()]


def letters_of(refusals: Sequence[str]) -> dict[str, str]:
    """Returns a letter for each reason, the commonest first."""
    counts = Counter(reason for reason in refusals if reason)
    return {reason: f"r{number}" for number, (reason, _) in enumerate(counts.most_common(), start=1)}


def totals(rows: Sequence[Row]) -> str:
    loaded = sum(any(not outcome.refusal for outcome in row.outcomes.values()) for row in rows)
    shapes = Counter(outcome.shape for row in rows for outcome in row.outcomes.values())
    not_own = sum(bool(reason) and not OWN_REASONS.search(reason) for reason in refusals_of(rows))
    return (
        f"{len(rows)} templates, of which {loaded} load. Of {len(rows) * len(TALKS)} conversations {shapes['path']} are"
        f" paths, {shapes['tree']} are trees, {shapes['refused']} are refused, {not_own} of them for a"
        " reason that does not lie in the template."
    )


def cells(row: Row, reasons: dict[str, str]) -> Iterator[str]:
    for outcome in row.outcomes.values():
        note = "".join(f" {name}={str(value).lower()}" for name, value in outcome.arguments)
        if outcome.refusal:
            yield reasons[outcome.refusal] + note
        elif outcome.shape == "path":
            yield f"{outcome.in_one_pass}{note}"
        else:
            yield f"{outcome.in_one_pass} of {outcome.separate}{note}"


def stops_of(row: Row) -> str:
    return " ".join(f"`{escaped(stop)}`" for stop in row.stops)


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
