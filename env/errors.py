"""What can go wrong on the way to a running environment, each with a message for a person."""


class EnvError(ValueError):
    """An environment cannot be built or used as asked; the message says what was expected, found, and what to do."""


class MissingSimulatorError(EnvError):
    """A simulator package is absent or of a version that does not work; the message says what to install."""
