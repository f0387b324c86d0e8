"""Errors that are meant for users are of one family, and still ValueErrors."""

import pytest

from components.conversations.readers.data_problems import ConversationError
from components.errors import InputError, TurnwiseError
from components.experiment.experiment_errors import ExperimentError


@pytest.mark.parametrize("kind", [InputError, ExperimentError, ConversationError])
def test_an_error_of_a_users_input_is_of_the_family(kind):
    assert issubclass(kind, TurnwiseError)
    assert issubclass(kind, ValueError)


def test_a_model_that_is_not_there_is_an_error_of_the_family():
    from components.experiment.spec import ModelSpec
    from components.models.base.load_base import resolve_model

    with pytest.raises(InputError, match=r"model\.path=/nowhere: no such directory"):
        resolve_model(ModelSpec(path="/nowhere"))
