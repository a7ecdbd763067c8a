"""Sensors: may this account read the dataset and write to the bucket? Is anything of this shard missing?"""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from physionet_airflow.bucket import AWS_CONN_ID, check_bucket, choose_way
from physionet_airflow.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from physionet_airflow.hook import PhysioNetHook
from physionet_airflow.run import Run, dataset_overrides, engine_errors, show_shard
from physionet_mirror.errors import MirrorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from physionet_mirror.dataset import Dataset
    from physionet_mirror.source.access_point import AccessPoint
    from physionet_mirror.source.physionet import PhysioNet


class AccessCheckSensor(BaseSensorOperator):
    """Waits until PhysioNet serves the dataset to this account and the bucket can be reached.

    What only a person can put right (password, agreement, bucket, params) fails at once, without a retry, with the text
    that this person needs. Maintenance and broken connections are waited for without holding a worker slot.

    Args:
        physionet_conn_id: The PhysioNet account.
        aws_conn_id: The bucket's account.
        dataset: Name of the dataset, which is then its prefix too; None = as the params say.
        dataset_param: The param that names the dataset, where it is one of several.

    Returns (XCom):
        ``Way.to_json()``: where the run's files come from, and why. What follows keeps to it.
    """

    ui_color = "#e8f0e4"

    def __init__(
        self,
        *,
        dataset: str | None = None,
        dataset_param: str | None = None,
        physionet_conn_id: str = PhysioNetHook.default_conn_name,
        aws_conn_id: str = AWS_CONN_ID,
        poke_interval: timedelta | float = timedelta(minutes=2),
        timeout: timedelta | float = timedelta(hours=12),
        mode: str = "reschedule",
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, mode=mode, **kwargs)
        self.dataset, self.dataset_param = dataset, dataset_param
        self.physionet_conn_id = physionet_conn_id
        self.aws_conn_id = aws_conn_id
        self._last = ""

    def execute(self, context: Context) -> Any:
        """Poke; on a time-out, report the last answer."""
        try:
            return super().execute(context)
        except AirflowSensorTimeout:
            raise AirflowSensorTimeout(
                f"Waited {timedelta(seconds=self.timeout)} in vain; nothing was fetched. The last answer was: {self._last} "
                "Trigger the run again when https://physionet.org is up."
            ) from None

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
                run = Run.of(context, self.aws_conn_id, **self.overrides(context))
                check_bucket(run.bucket, self.aws_conn_id)
                way = choose_way(run.request.source, run.request.dataset, run.bucket, self.aws_conn_id)
                with closing(run.origin(way, physionet_conn_id=self.physionet_conn_id)) as source:
                    self.ask(source, run.request.dataset)
        except MirrorError as error:
            if error.retry_delay is None:  # nothing that passes by itself within hours
                raise AirflowFailException(f"{type(error).__name__}: {error}") from None
            self._last = str(error)
            self.log.info("Not yet: %s Asking again in %.0f s.", error, self.poke_interval)
            return False
        self.log.info("PhysioNet serves %s, and %s is in reach.", run.request.dataset.name, run.bucket.uri())
        self.log.info("For the whole run, %s.", way)
        return PokeReturnValue(is_done=True, xcom_value=way.to_json())


class MissingSensor(BaseSensorOperator):
    """Compares one shard with the bucket; skips it if it is complete, else returns it with the number of missing images.

    Args:
        shard: ``Shard.to_json()``, one of the plan's.
        aws_conn_id: The bucket's account.

    Returns (XCom):
        The shard with ``missing``, the number of images to fetch; their list is in S3.
    """

    template_fields = ("shard",)
    ui_color = "#e8f0e4"

    def __init__(self, *, shard: Mapping[str, Any], aws_conn_id: str = AWS_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard = shard
        self.aws_conn_id = aws_conn_id

    @engine_errors()
    def poke(self, context: Context) -> PokeReturnValue:
        """Compare once; never pokes again."""
        show_shard(context, self.shard["name"])
        from physionet_mirror.records import Shard
        from physionet_mirror.steps import mirror_shard

        with engine_errors():
            run = Run.of(context, self.aws_conn_id)
            found = mirror_shard.find_missing(
                Shard.from_json(self.shard), run.request, run.bucket, run.layout, started=run.started
            )
        if not found.images:
            raise AirflowSkipException(
                f"Nothing is missing: all {found.present:,} {self.shard.get('noun', 'image')}s are there."
            )
        return PokeReturnValue(is_done=True, xcom_value={**self.shard, "missing": len(found.images)})
