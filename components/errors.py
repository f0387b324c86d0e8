"""The errors that are meant for users: one family, so that a program or a notebook can catch them all, or one kind."""


class TurnwiseError(Exception):
    """Base of all of them. Its message names the place, the value, the rule and the way out."""


class InputError(TurnwiseError, ValueError):
    """Something that a user wrote or named cannot be used: an argument, a file, a directory, a model."""


class TrackingError(TurnwiseError):
    """MLflow is away, or has refused what a search cannot do without."""


class TakenOverError(TurnwiseError):
    """Another driver runs the search now, so this one has ended."""


class VerificationError(TurnwiseError, RuntimeError):
    """A candidate that cannot be made a version, or does not load, answer, or score what it scored in training."""


class PreparationError(TurnwiseError):
    """A cluster did not prepare the data, for no reason of the data's: the same command goes on where it ended."""


def message_of(error: Exception) -> str:
    """What an error says; of the system's own, the file first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
