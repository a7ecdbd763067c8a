"""Has an outage ended? Asked without a login, so that whoever waits needs no account."""

from __future__ import annotations

from contextlib import closing

from physionet_mirror.dataset import Dataset
from physionet_mirror.errors import NotTheFile, SourceUnavailable, Throttled
from physionet_mirror.source.session import Session

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0
"""Seconds, as those of a shard's task."""


def is_over(base_url: str, dataset: Dataset, user_agent: str) -> bool:
    """Whether PhysioNet answers as it does when it is up: with the file, or with a refusal of a stranger.

    One request, a HEAD of the dataset's checksum file.

    Args:
        base_url: Where PhysioNet is.
        dataset: Whose file is asked for.
        user_agent: As whom to ask.

    Raises:
        InputError: A setting of this machine keeps it from being asked.
    """
    session = Session(
        base_url,
        "",
        "",
        user_agent=user_agent,
        connections=1,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
    )
    with closing(session):
        try:
            status, error = session.knock(dataset)
        except (SourceUnavailable, Throttled):
            return False
    return status == 401 or not isinstance(error, (SourceUnavailable, Throttled, NotTheFile))
