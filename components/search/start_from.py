"""What a search learns from earlier ones: `search.start_from`, resolved and compared when the search is opened.

Losses compare only where the model, the data, the budget, the evaluations and all values that are not varied are the same. A
search that differs in one of them is refused, with the difference. Trials whose values lie outside a range that was narrowed
since are left out and counted; so are clones that are no point of the space.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import InputError
from components.experiment.branch_models import models_of
from components.experiment.report_marks import report_marks, rungs_alone, rungs_of
from components.experiment.space import branches_of, trial_spec
from components.experiment.spec import ExperimentSpec, ModelSpec
from components.experiment.start_points import LATEST, NamedSearch, named_searches, start_points, value_in
from components.records.earlier_trials import EarlierTrial
from components.records.events import TrialHistory, replay
from components.records.journal import Journal
from components.records.manifest import SearchManifest, searches_in
from components.records.objectives import measured_at_marks
from components.search.find import differences, leaves
from components.storage.open_folder import folder_at

MUST_BE_EQUAL = ("search.metric", "trial.budget.evaluations", "evaluation.conversations_at_rungs")
OF_MODELS = ("path", "revision", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownStart:
    """`searches` are named EXPERIMENT/ID, to find them again; `sentences` are for people."""

    trials: tuple[EarlierTrial, ...] = ()
    searches: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which trials compare: the model of each branch as it was written, the digest of its data, and the budget.

    `by_bytes`: the budget is in bytes of targets, as there are several base models; else in target tokens.
    """

    models: Mapping[str, ModelSpec]
    digests: Mapping[str, str]
    budget: int
    by_bytes: bool = False


def start_from(experiment: ExperimentSpec, resumed: SearchManifest | None, terms: Terms) -> KnownStart:
    """Reads the trials of the earlier searches.

    Args:
        experiment: with a range in place of each `auto`.
        resumed: the search that goes on, if there is one: it keeps to the searches that it began with.
        terms: of this search.

    Raises InputError for a search that is not there, or cannot be compared, and ExperimentError for points outside a range.
    """
    points = sum(map(len, start_points(experiment).values()))
    sentences = [f"search.start_from: {points} given points come first"] if points else []
    found, trials = [], []
    for name in _named(experiment, resumed):
        manifest = _find(experiment, name)
        if manifest is None:
            sentences.append(
                f"search.start_from: no search of {experiment.name} has ended yet, so there is none to learn from"
            )
            continue
        title = f"{manifest.experiment.name}/{manifest.search_id}"
        if title in found:
            continue
        known, left_out = _trials(experiment, manifest, terms)
        found.append(title)
        trials += known
        sentences.append(_sentence(experiment, title, len(known), left_out))
    return KnownStart(trials=tuple(trials), searches=tuple(found), sentences=tuple(sentences))


def _named(experiment: ExperimentSpec, resumed: SearchManifest | None) -> Iterator[NamedSearch]:
    if resumed is None:
        yield from named_searches(experiment)
        return
    for title in resumed.started_from:
        name, _, search_id = title.rpartition("/")
        yield NamedSearch(experiment=name, search_id=search_id)


def _find(experiment: ExperimentSpec, name: NamedSearch) -> SearchManifest | None:
    """Returns the search; None if `latest` is the first one."""
    folder = folder_at(experiment.storage.path) / (name.experiment or experiment.name)
    there = searches_in(folder)
    if name.search_id == LATEST:
        return next((manifest for manifest in reversed(there) if manifest.finished), None)
    for manifest in there:
        if manifest.search_id == name.search_id:
            return manifest
    known = ", ".join(manifest.search_id for manifest in there[-10:]) or "none"
    raise InputError(f"search.start_from: no {name} in {folder} (there: {known}); name one of these, or leave it out")


def _trials(
    experiment: ExperimentSpec, manifest: SearchManifest, terms: Terms
) -> tuple[list[EarlierTrial], Counter[str]]:
    """Returns the trials of one search, and how many were left out, by reason."""
    folder = folder_at(experiment.storage.path) / manifest.experiment.name / manifest.search_id
    histories = list(replay(Journal(folder).read()).values())
    unlike = [*_unlike_searches(experiment, manifest, terms)]
    known: list[EarlierTrial] = []
    left_out: Counter[str] = Counter()
    for history in histories:
        reason, changes = _unlike_trial(experiment, history)
        unlike += [change for change in changes if change not in unlike]
        if reason:
            left_out[reason] += 1
        elif not changes:
            known.append(_earlier(experiment, history, terms.budget))
    if unlike:
        listed = "\n".join(f"  {each}" for each in unlike)
        raise InputError(
            f"search.start_from: {manifest.search_id} cannot be compared with this search; set these back, or leave it out\n"
            f"{listed}"
        )
    return known, left_out


def _unlike_searches(experiment: ExperimentSpec, manifest: SearchManifest, terms: Terms) -> Iterator[str]:
    before = models_of(manifest.experiment)
    shared = [name for name in terms.models if name in before]
    yield from dict.fromkeys(text for name in shared for text in _unlike_data(name, manifest, terms))
    if bool(manifest.other_bases) != terms.by_bytes:
        yield "search.space: one of the two has several base models, whose budgets and losses count by bytes"
    elif manifest.budget != terms.budget:
        unit = "bytes of targets" if terms.by_bytes else "target tokens"
        yield f"trial.budget: was {manifest.budget} {unit}, is {terms.budget}"
    yield from dict.fromkeys(text for name in shared for text in _unlike_models(name, before[name], terms))
    seconds = ("resources",) if experiment.search.metrics else ()
    for change in differences(manifest.experiment, experiment):
        if change.startswith((*MUST_BE_EQUAL, *seconds)):
            yield change


def _unlike_data(branch: str, manifest: SearchManifest, terms: Terms) -> Iterator[str]:
    prepared = manifest.base_of(branch).prepared.rstrip("/").rpartition("/")[2]
    if prepared != terms.digests[branch]:
        now = terms.digests[branch][:12]
        yield f"data: was {prepared[:12]}, is {now} (the records, their split, the template or max_tokens)"


def _unlike_models(branch: str, before: ModelSpec, terms: Terms) -> Iterator[str]:
    for key in OF_MODELS:
        was, value = getattr(before, key), getattr(terms.models[branch], key)
        if was != value:
            where = f"search.space.{branch}.model" if terms.by_bytes else "model"
            yield f"{where}.{key}: was {was!r}, is {value!r}"


def _unlike_trial(experiment: ExperimentSpec, history: TrialHistory) -> tuple[str, list[str]]:
    """Returns why a trial is left out, or what about it makes its search another one; both empty: it is a point."""
    started, branch = history.started, branches_of(experiment).get(history.started.branch)
    if branch is None:
        return f"{started.branch} is no branch any more", []
    if not history.reports:
        return "without a report", []
    if started.warm_from is not None:
        return "began with the weights of another trial", []
    if started.varied.keys() != branch.domains.keys():
        if started.parent is not None:
            return "a clone that is no point of the space", []
        before, after = (", ".join(sorted(paths)) or "nothing" for paths in (started.varied, branch.domains))
        return "", [f"search.space.{branch.name}: varied {before}; varies {after}"]
    values = _values_in(branch.domains, started.varied)
    if values is None:
        return "outside the ranges", []
    was, now = (
        leaves(spec.model_dump(mode="json", exclude={"budget"}))
        for spec in (started.spec, trial_spec(experiment, branch, values))
    )
    changes = [
        f"search.space.{branch.name}.{path}: was {was.get(path)!r}, is {now.get(path)!r}"
        for path in sorted(was.keys() | now.keys())
        if was.get(path) != now.get(path)
    ]
    return ("a clone that is no point of the space", []) if changes and started.parent is not None else ("", changes)


def _values_in(domains: Mapping[str, Any], varied: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return {path: value_in(domain, varied[path]) for path, domain in domains.items()}
    except ValueError:
        return None


def _earlier(experiment: ExperimentSpec, history: TrialHistory, budget: int) -> EarlierTrial:
    branch = branches_of(experiment)[history.started.branch]
    evaluations, rungs = experiment.trial.budget.evaluations, rungs_of(experiment, budget)
    marks, alone = report_marks(budget, evaluations, rungs), rungs_alone(budget, evaluations, rungs)
    return EarlierTrial(
        branch=branch.name,
        varied=_values_in(branch.domains, history.started.varied) or {},
        measured=measured_at_marks(history.reports, experiment.search.metrics, budget, marks, alone),
        impossible=any(report.diverged is not None for report in history.reports),
    )


def _sentence(experiment: ExperimentSpec, title: str, known: int, left_out: Counter[str]) -> str:
    rest = ", ".join(f"{count} left out: {reason}" for reason, count in left_out.items())
    return f"search.start_from: {experiment.search.sampler} knows {known} trials of {title}" + (
        f" ({rest})" if rest else ""
    )
