"""Mistakes a person can mend. ``script/run.py`` prints their message without a traceback.

Every message names the configuration key or the file, says what was expected and what was found, and what to do.
"""

from __future__ import annotations


class UsageError(ValueError):
    """The command line, the configuration or a file given by a person does not do."""


class DatasetError(UsageError):
    """A demonstration file is absent, damaged, or not what the configuration says it is."""


class CheckpointError(UsageError):
    """A checkpoint cannot be read, written, or used with the configuration given."""


class RunDirError(UsageError):
    """The run directory (``logdir``) cannot be used: taken, unwritable, or its disk is full."""


class DownloadError(UsageError):
    """A published file cannot be fetched, or is not any more what was fetched."""
