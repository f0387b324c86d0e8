"""Finds the trial of a search that has a configuration already: trained again, it would end with the same weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from components.experiment.draw_trials import sample_trials
from components.experiment.space import branch_order, branches_of, configuration_key, grid_of, num_points, trial_spec
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.records.events import TrialHistory


def equal_trial(
    experiment: ExperimentSpec, histories: Mapping[str, TrialHistory], spec: TrialSpec, warm_from: str | None
) -> str | None:
    """Returns which trial of the search it is, in words; None if there is none. A clone that begins with other weights
    (`warm_from`) is another trial."""
    wanted = configuration_key(spec)
    for number, known, known_warm in _known(histories):
        if known_warm == warm_from and configuration_key(known) == wanted:
            return f"trial {number}"
    return None if warm_from else _planned(experiment, wanted)


def _known(histories: Mapping[str, TrialHistory]) -> Iterator[tuple[int, TrialSpec, str | None]]:
    for history in histories.values():
        yield history.started.number, history.started.spec, history.started.warm_from
        for clone in history.clones:
            yield clone.number, clone.spec, clone.warm_from


def _planned(experiment: ExperimentSpec, wanted: str) -> str | None:
    """Trials that have not started yet: all are known where none is suggested by results, else those of a small branch."""
    if not experiment.search.learns:
        keys = [configuration_key(trial.spec) for trial in sample_trials(experiment)]
        return f"trial {keys.index(wanted) + 1}, which has not started yet," if wanted in keys else None
    planned = Counter(branch.name for branch in branch_order(experiment))
    for name, branch in branches_of(experiment).items():
        if num_points(branch) == planned[name]:
            points = (trial_spec(experiment, branch, values) for values in grid_of(branch))
            if any(configuration_key(point) == wanted for point in points):
                return f"a trial of branch {name} that has not started yet"
    return None
