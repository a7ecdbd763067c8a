"""What waits for an outage to end, in Airflow's triggerer: no worker, no pod, no account and no right is needed for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from physionet_mirror.errors import MirrorError


class OutageTrigger(BaseTrigger):
    """Fires when PhysioNet answers again, or after a pause where it is not PhysioNet that is waited for.

    Args:
        pause: Seconds before the first question.
        interval: Seconds between two.
        until: Give up then (seconds since the epoch).
        dataset: Name of the dataset whose file is asked for; None = only the pause.
        base_url: Where PhysioNet is.
        user_agent: As whom to ask.
        carried: What the event gives back.

    Fires with ``carried`` and ``in_vain``, whether it was waited until ``until``.
    """

    def __init__(
        self,
        *,
        pause: float,
        interval: float,
        until: float,
        dataset: str | None,
        base_url: str,
        user_agent: str,
        carried: dict[str, Any],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pause, self.interval, self.until = pause, interval, until
        self.dataset, self.base_url, self.user_agent = dataset, base_url, user_agent
        self.carried = carried

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """For Airflow's database."""
        names = ("pause", "interval", "until", "dataset", "base_url", "user_agent", "carried")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait."""
        wait = self.pause
        while True:
            await asyncio.sleep(max(0.0, min(wait, self.until - time.time())))
            in_vain = time.time() >= self.until
            if in_vain or await asyncio.to_thread(self._is_over):
                yield TriggerEvent({**self.carried, "in_vain": in_vain})  # type: ignore[no-untyped-call]
                return
            wait = self.interval

    def _is_over(self) -> bool:
        from physionet_mirror.dataset import project
        from physionet_mirror.source.outage import is_over

        if self.dataset is None:
            return True
        try:
            return is_over(self.base_url, project(self.dataset), self.user_agent)
        except MirrorError as error:  # a setting of the triggerer: the worker may have another
            self.log.warning("The triggerer cannot ask PhysioNet, so the task asks again. %s", error)
            return True
