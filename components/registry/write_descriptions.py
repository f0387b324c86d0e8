"""Writes descriptions.py's texts to the registry, beside the tags that programs read."""

from __future__ import annotations

from collections.abc import Sequence

from components.models.base.reference import BaseReference
from components.registry.candidate import RegistryCandidate
from components.registry.chat_model import INPUTS
from components.registry.descriptions import VersionFacts, describe_model, describe_version, may_replace
from components.statistics.paired_bootstrap import Comparison


def write_descriptions(
    candidate: RegistryCandidate, number: str, *, promoted: bool, reason: str, comparisons: Sequence[Comparison]
) -> None:
    """Of a version that the gate has decided about, and of its registered model. What a person wrote stays.

    Raises what MLflow raises.
    """
    client, name, alias = candidate.client, candidate.name, candidate.experiment.registry.alias
    if may_replace(client.get_model_version(name, number).description):
        base, started = BaseReference.read(candidate.checkpoint), candidate.trial.started
        facts = VersionFacts(
            name=name,
            number=number,
            alias=alias,
            promoted=promoted,
            reason=reason,
            comparisons=comparisons,
            experiment=candidate.experiment.name,
            search_id=candidate.runs.search_id,
            search_run=candidate.runs.parent_id,
            method=started.spec.method.kind,
            base_model=base.model.path,
            varied=started.varied,
            data=str(candidate.experiment.data.train),
            data_digest=candidate.dataset.digest,
            counts=candidate.dataset.counts,
        )
        client.update_model_version(name, number, describe_version(facts))
    if may_replace(client.get_registered_model(name).description):
        client.update_registered_model(name, describe_model(name, alias, candidate.experiment.name, INPUTS))
