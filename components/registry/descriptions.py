"""What MLflow's pages say of a registered model and of its versions: Markdown for people. No MLflow in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.experiment.spec import CHALLENGER, PREVIOUS
from components.experiment.varied import hyperparameters
from components.registry.version_tags import SCHEME
from components.statistics.paired_bootstrap import Comparison
from components.storage.excerpt import excerpt

MOST_LETTERS = 5000  # that MLflow's databases hold
OF_A_REASON, OF_A_NAME = 1500, 200
OURS = "*Written by Turnwise at a registration. A text of your own in place of it stays.*"


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """What a version's page says. `counts`: of the prepared data, by name, as in its manifest."""

    name: str
    number: str
    alias: str
    promoted: bool
    reason: str
    comparisons: Sequence[Comparison]
    experiment: str
    search_id: str
    search_run: str
    method: str
    base_model: str
    varied: Mapping[str, object]
    data: str
    data_digest: str
    counts: Mapping[str, int]


def describe_version(facts: VersionFacts) -> str:
    uri = f"{SCHEME}{facts.name}/{facts.number}"
    verdict = f"It passed the gate and got the alias `{facts.alias}`" if facts.promoted else "It did not pass the gate"
    reason = excerpt(facts.reason.replace("`", "'"), OF_A_REASON)
    return "\n\n".join(
        [
            f"**{verdict}**: {reason}.",
            _losses(facts.comparisons),
            _table(
                ("trained", ""),
                [
                    ("method", f"{facts.method} on {_code(facts.base_model)}"),
                    ("hyperparameters", hyperparameters(facts.varied) or "as the experiment has them"),
                    ("data", f"{_code(facts.data)}, digest {_code(facts.data_digest[:12])}"),
                    *((f"data, {split}", _counted(facts.counts, split)) for split in ("train", "eval", "verdict")),
                    ("search", f"{_code(facts.search_id)} of {_code(facts.experiment)}, run {_code(facts.search_run)}"),
                ],
            ),
            _commands(
                f"python workflows/chat.py {uri}",
                f"python workflows/serve.py {uri.removeprefix(SCHEME)}",
                f"python workflows/registry.py show {uri.removeprefix(SCHEME)}",
                f"mlflow artifacts download --run-id {facts.search_run} --artifact-path experiment.json --dst-path .",
                "python workflows/tune.py experiment.json --new",
            ),
            OURS,
        ]
    )


def describe_model(name: str, alias: str, experiment: str, inputs: Mapping[str, str]) -> str:
    """`inputs`: what a request to one of its versions may hold, each with its meaning."""
    return "\n\n".join(
        [
            f"Models that answer conversations, fine-tuned by searches of {_code(experiment)}. Each version was loaded in a"
            " fresh process and compared with its base model, and with the version in use.",
            _table(
                ("alias", "the version that"),
                [
                    (alias, "is in use: it beat its base model and the version before it"),
                    (PREVIOUS, f"held {_code(alias)} before"),
                    (CHALLENGER, "is the newest that did not pass the gate"),
                ],
            ),
            _commands(
                f"python workflows/chat.py {SCHEME}{name}@{alias}",
                f"python workflows/serve.py {name}@{alias}",
                f"python workflows/registry.py list {name}",
                f'python workflows/registry.py rollback {name} --alias {alias} --reason "..."',
            ),
            "A request to MLflow's own server may hold:",
            _table(("input", "meaning"), list(inputs.items())),
            OURS,
        ]
    )


def may_replace(description: str | None) -> bool:
    """Whether a description is none, or one of these texts. Another one is a person's."""
    return not (description or "").strip() or OURS in str(description)


def _losses(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for each in comparisons:
        ends = " to ".join("unbounded" if end is None else f"{end:+.4f}" for end in (each.low, each.high))
        numbers = f"{each.candidate_loss:.4f}", f"{each.other_loss:.4f}", f"{each.difference:+.4f}"
        rows.append((each.other, f"{each.metric}{each.unit and ', '}{each.unit}", *numbers, ends))
    return _table(
        ("against", "metric", "this version", "the other", "better by", f"interval at {_confidence(comparisons)}"), rows
    )


def _confidence(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(dict.fromkeys(f"{100 * each.confidence:g} %" for each in comparisons))


def _counted(counts: Mapping[str, int], split: str) -> str:
    if f"{split}_conversations" not in counts:
        return "none"
    return f"{counts[f'{split}_conversations']:,} conversations, {counts.get(f'{split}_targets', 0):,} targets"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{excerpt(text.replace('`', ''), OF_A_NAME)}`"


def _commands(*lines: str) -> str:
    return "\n".join(["```bash", *lines, "```"])
