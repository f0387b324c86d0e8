"""What is asked of the models at evaluations, as it travels to the processes of a search: without what asks or scores."""

from __future__ import annotations

from dataclasses import dataclass

from components.conversations.messages import Conversation
from components.experiment.spec import GenerateSpec


@dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """What is generated, and how it is scored: plain values that travel to workers.

    `probes` are asked where `generate.source` says so. `working_directory` is where functions of the user are looked for.
    """

    generate: GenerateSpec
    probes: tuple[Conversation, ...] = ()
    working_directory: str = ""
