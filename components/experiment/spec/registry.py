"""The sections `tracking:` and `registry:`: the MLflow server, and the gate before a registered model."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from components.experiment.spec.section import Amount, Count, Name, NonNegativeAmount, Share, Spec

CHALLENGER = "challenger"  # the alias of the newest candidate that did not pass the gate
PREVIOUS = "previous"  # the alias of the version that held registry.alias before it moved
_VERSION_ALIAS = re.compile(r"v\d+", re.IGNORECASE)
_MAX_EXPERIMENT_LETTERS = 250  # MLflow's column in a database holds 256


def _check_alias(alias: str) -> str:
    """Refuses aliases that MLflow would refuse only after the search, when it is set, or resolve to an unintended version."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", alias):
        raise ValueError('an alias has letters, digits, "_" and "-" only, and begins with a letter or digit')
    if alias.lower() == "latest":
        raise ValueError(
            "a registry answers this alias with its newest version, whatever passed the gate; choose another one"
        )
    if _VERSION_ALIAS.fullmatch(alias):
        raise ValueError("in a registry v and a number is a version; choose another alias")
    if alias.lower() == CHALLENGER:
        raise ValueError("this alias is for the candidate that did not pass the gate; choose another one")
    if alias.lower() == PREVIOUS:
        raise ValueError("this alias is for the version that was replaced; choose another one")
    return alias


def _check_mlflow_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("an MLflow experiment needs a name of visible characters")
    return name


class TrackingSpec(Spec):
    uri: str | None = Field(
        None, description="MLflow server; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here."
    )
    experiment: Annotated[str, Field(max_length=_MAX_EXPERIMENT_LETTERS), AfterValidator(_check_mlflow_name)] | None = (
        Field(None, description="MLflow experiment; by default this experiment's name.")
    )
    required: bool = Field(
        True,
        description="Whether MLflow must answer when a search begins. If not, the journal is kept meanwhile, and"
        " `tune.py --sync` fills MLflow from it.",
    )


class JudgeSpec(Spec):
    """A model elsewhere that is asked whose answers are better. It decides nothing, and its key is in no record."""

    url: str = Field(description="Of an OpenAI-compatible API, up to `/v1`: `http://localhost:8000/v1`.")
    model: str = Field(min_length=1, description="The name that the endpoint knows its model by.")
    key_env: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the key; where it is not set, none is sent.",
    )
    questions: Count = Field(
        64, description="How many at most: the probes, then the last questions of the conversations that judge."
    )
    timeout_seconds: Amount = Field(60.0, description="Longest wait for one reply; it is tried three times.")

    @model_validator(mode="after")
    def _is_address(self) -> Self:
        """Of the whole section: in the error of a field pydantic would show the value, which may hold a key."""
        address = urlsplit(self.url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("url: must begin with http:// or https:// and a host, e.g. https://api.openai.com/v1")
        if address.query or address.fragment:  # a user and a password are refused in every URI
            raise ValueError("url: must hold no query or fragment; the key is read from key_env")
        return self


class GateSpec(Spec):
    """What a candidate must not lose while it wins: vetoes beside the metric of the search."""

    no_worse: dict[str, NonNegativeAmount] = Field(
        default_factory=dict,
        description="Score -> margin: the candidate may be worse than the incumbent, else than the base, by at most that, by"
        " the whole interval. Scores of what is said (`stop_rate`, `json_valid`, a function of yours that"
        " evaluation.generate names), `general_loss`, `eval_loss`. Nothing else is guarded.",
    )


class RegistrySpec(Spec):
    """What a candidate must pass before it becomes a registered model."""

    name: Name | None = Field(None, description="Registered model; by default turnwise-<experiment>.")
    alias: Annotated[str, Field(max_length=100), AfterValidator(_check_alias)] = Field(
        "champion",
        description=f"Points to the version that passed the gate; not latest, v1, v2 ..., {CHALLENGER} or {PREVIOUS}.",
    )
    confidence: Share = Field(0.95, description="How sure to be that a candidate beats the incumbent and the base.")
    gate: GateSpec = GateSpec()
    prefer: Literal["quality", "cheapest_within_noise"] = Field(
        "quality",
        description="Which branch's best is registered: the best one, or of all that are within noise of it the one that"
        " trains the fewest weights.",
    )
    proof_minutes: Amount = Field(
        30.0,
        description="Longest time the candidate, its base model and the incumbent may each take to load, talk and be scored"
        " in a fresh process.",
    )
    probes: str | None = Field(
        None,
        description="JSONL of questions for candidate, base and incumbent; `expect` is what an answer should hold.",
    )
    judge: JudgeSpec | None = Field(
        None, description="Asked for the win rate of the candidate's answers against the base's and the incumbent's."
    )
