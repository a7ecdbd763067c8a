"""Sensors: may this account read the dataset and write to the bucket? Is anything of this shard missing?"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from physionet_airflow.bucket import check_bucket, choose_way, try_store
from physionet_airflow.compat import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
)
from physionet_airflow.notify import notifiers
from physionet_airflow.run import Run, dataset_overrides, engine_errors, show_shard
from physionet_mirror.errors import DestinationError, MirrorError, NotTheFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from physionet_mirror.dataset import Dataset
    from physionet_mirror.source.access_point import AccessPoint
    from physionet_mirror.source.physionet import PhysioNet


QUESTION_EVERY, LONGEST_PAUSE = 30.0, 1800.0
"""Seconds between the triggerer's questions to PhysioNet. The first of them waits twice as long after each check by the task
that failed all the same, up to the latter."""


class AccessCheckSensor(BaseSensorOperator):
    """Waits until PhysioNet serves the dataset to this account and the bucket can be reached.

    What only a person can put right (password, agreement, bucket, params) fails at once, without a retry, with the text
    that this person needs. Maintenance and broken connections are waited for in the triggerer, which asks PhysioNet without
    a login whether it answers; where no triggerer runs, the task is rescheduled. Neither holds a worker slot, and people are
    told once (`notify`).

    Args:
        dataset: Name of the dataset, which is then its prefix too; None = as the params say.
        dataset_param: The param that names the dataset, where it is one of several.

    Returns (XCom):
        ``Way.to_json()``: where the run's files come from, and why; and ``store``, what the bucket's S3 can do
        (``Store.to_json()``). What follows keeps to both.
    """

    ui_color = "#e8f0e4"

    def __init__(
        self,
        *,
        dataset: str | None = None,
        dataset_param: str | None = None,
        poke_interval: timedelta | float = timedelta(minutes=2),
        timeout: timedelta | float = timedelta(hours=12),
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, mode=mode, **kwargs)
        self.dataset, self.dataset_param = dataset, dataset_param
        self._last = ""
        self._outage_of: dict[str, Any] = _NOBODY

    def execute(self, context: Context) -> Any:
        """Check; if PhysioNet or S3 cannot say now, wait. On a time-out, report the last answer."""
        try:
            return super().execute(context)
        except AirflowSensorTimeout:
            raise self._in_vain() from None
        except AirflowRescheduleException:
            if not context.get("task_reschedule_count"):
                self._tell(context)
            if not triggerer_runs():
                self.log.info("No triggerer runs, so this task checks again in %.0f s.", self.poke_interval)
                raise
        self._defer(datetime.now(UTC).timestamp() + self.timeout, times=0)

    def check_again(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Check after the triggerer has waited; ``event`` is `OutageTrigger`'s."""
        self._last = event["last"]
        if event["in_vain"]:
            raise self._in_vain()
        found = self.poke(context)
        if isinstance(found, PokeReturnValue):
            return found.xcom_value
        self._defer(event["until"], event["times"] + 1)

    def _defer(self, until: float, times: int) -> NoReturn:
        from physionet_airflow.triggers import OutageTrigger

        trigger = OutageTrigger(
            pause=min(QUESTION_EVERY * 2**times, LONGEST_PAUSE),
            interval=QUESTION_EVERY,
            until=until,
            carried={"last": self._last, "until": until, "times": times},
            **self._outage_of,
        )
        self.log.info(
            "Waiting in the triggerer, until %s at most.", datetime.fromtimestamp(until, UTC).isoformat(" ", "seconds")
        )
        self.defer(trigger=trigger, method_name="check_again")
        raise AssertionError

    def overrides(self, context: Context) -> dict[str, Any]:
        """Params that are replaced, so that the dataset is the one that this task is about."""
        return dict(dataset_overrides(context, self.dataset, self.dataset_param))

    def ask(self, source: PhysioNet | AccessPoint, dataset: Dataset) -> None:
        """Raise unless the source lets this account read the dataset."""
        source.check_access(dataset)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Whether source and bucket both let us in, and by which way the files come (`Way.to_json`)."""
        try:
            with engine_errors():
                run = Run.of(context, **self.overrides(context))
                check_bucket(run.bucket)
                way = choose_way(run.request.source, run.request.dataset, run.bucket)
                with closing(run.origin(way)) as source:
                    self._outage_of = _asked(source, run.request.dataset)
                    self.ask(source, run.request.dataset)
                store = try_store(run.bucket, run.request.storage_class)
        except MirrorError as error:
            # What passes by itself within hours; a page for everybody is maintenance.
            passes = error.retry_delay is not None or isinstance(error, NotTheFile)
            if not passes:
                raise AirflowFailException(f"{type(error).__name__}: {error}") from None
            if isinstance(error, DestinationError):
                self._outage_of = _NOBODY
            self._last = str(error)
            self.log.info("Not yet: %s", error)
            return False
        self.log.info("PhysioNet serves %s, and %s is in reach.", run.request.dataset.name, run.bucket.uri())
        self.log.info("For the whole run, %s.", way)
        for lack in store.lacks():
            self.log.info("For the whole run: %s.", lack)
        return PokeReturnValue(is_done=True, xcom_value={**way.to_json(), "store": store.to_json()})

    def _in_vain(self) -> AirflowSensorTimeout:
        return AirflowSensorTimeout(
            f"Waited {timedelta(seconds=self.timeout)} in vain; nothing was fetched. The last answer was: {self._last} "
            "Trigger the run again when https://physionet.org is up."
        )

    def _tell(self, context: Context) -> None:
        said = f"{self._last}\nIt goes on by itself when that is over, and gives up after {timedelta(seconds=self.timeout)}."
        for notifier in notifiers("waiting", said):
            notifier(context)


_NOBODY: dict[str, Any] = {"dataset": None, "base_url": "", "user_agent": ""}


def _asked(source: PhysioNet | AccessPoint, dataset: Dataset) -> dict[str, Any]:
    """Whom `OutageTrigger` asks whether it answers again; nobody where it is S3 that does not."""
    from physionet_mirror.source.access_point import AccessPoint

    if isinstance(source, AccessPoint):
        return _NOBODY
    return {"dataset": dataset.name, "base_url": source.base_url, "user_agent": source.user_agent}


def triggerer_runs() -> bool:
    """Whether Airflow's API server, asked at the address that the tasks use, says that a triggerer is healthy."""
    import requests
    from airflow.configuration import conf

    api = conf.get("core", "execution_api_server_url", fallback="") or ""
    root = api.rstrip("/").removesuffix("/execution") or conf.get("api", "base_url", fallback="") or ""
    try:
        health = requests.get(f"{root.rstrip('/')}/api/v2/monitor/health", timeout=5).json()
        return bool(health["triggerer"]["status"] == "healthy")
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return False


class MissingSensor(BaseSensorOperator):
    """Compares one shard with the bucket; skips it if it is complete, else returns it with the number of missing images.

    Args:
        shard: ``Shard.to_json()``, one of the plan's.

    Returns (XCom):
        The shard with ``missing``, the number of images to fetch; their list is in S3.
    """

    template_fields = ("shard",)
    ui_color = "#e8f0e4"

    def __init__(self, *, shard: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard = shard

    @engine_errors()
    def poke(self, context: Context) -> PokeReturnValue:
        """Compare once; never pokes again."""
        show_shard(context, self.shard)
        from physionet_mirror.records import Shard
        from physionet_mirror.steps import mirror_shard

        run = Run.of(context)
        found = mirror_shard.find_missing(
            Shard.from_json(self.shard), run.request, run.bucket, run.layout, started=run.started
        )
        if not found.images:
            raise AirflowSkipException(
                f"Nothing is missing: all {found.present:,} {self.shard.get('noun', 'image')}s are there."
            )
        return PokeReturnValue(is_done=True, xcom_value={**self.shard, "missing": len(found.images)})
