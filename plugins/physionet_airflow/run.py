"""What every operator needs of its run: the validated request, the bucket, and errors that are safe to log."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import get_current_context
from airflow.sdk.bases.xcom import BaseXCom

from physionet_airflow import metrics
from physionet_airflow.bucket import choose_way, open_access_point, open_bucket, open_copiers
from physionet_airflow.compat import AirflowFailException
from physionet_airflow.hook import PhysioNetHook
from physionet_airflow.notify import leave_notice
from physionet_mirror.errors import InputError, MirrorError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from physionet_mirror.layout import RunLayout
    from physionet_mirror.mover import Mover
    from physionet_mirror.records import Store
    from physionet_mirror.request import Request
    from physionet_mirror.s3.bucket import Bucket
    from physionet_mirror.source.access_point import AccessPoint
    from physionet_mirror.source.physionet import PhysioNet
    from physionet_mirror.source.way import Way

log = logging.getLogger(__name__)

ACCESS_CHECK = "check_access"
"""Task id of the `AccessCheckSensor`, whose XCom says which way the run's files take, and what the bucket's S3 can do."""

_NOT_OURS = {"openlineage"}
"""Keys that Airflow's own operators put into the conf of a run that they trigger."""


def streams() -> int:
    """Shards streamed at once: the environment variable ``PHYSIONET_STREAMS``, default 4.

    Raises:
        InputError: It is not a positive integer.
    """
    text = os.environ.get("PHYSIONET_STREAMS") or "4"
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}", text):
        raise InputError(
            f"The environment variable PHYSIONET_STREAMS is {text!r}; it must be a whole number above zero."
        )
    return int(text)


def pool() -> str:
    """The pool of the stream tasks, one slot a stream: ``PHYSIONET_POOL``; Airflow's default pool always exists."""
    return os.environ.get("PHYSIONET_POOL") or "default_pool"


def most_shards() -> int:
    """Shards that this Airflow can map over, by its setting ``[core] max_map_length``."""
    from airflow.configuration import conf

    from physionet_mirror.shards import MOST_SHARDS

    return max(1, min(MOST_SHARDS, conf.getint("core", "max_map_length", fallback=MOST_SHARDS)))


@dataclass(frozen=True)
class Run:
    """One DAG run, as its tasks see it.

    Attributes:
        params: The params as given; plain values.
        request: The same, validated.
        bucket: The destination; no request is made until it is used.
        layout: Where the run's files lie.
        started: When the run began.
        checked: What ``check_access`` has returned; None where it did not run.
    """

    params: Mapping[str, Any]
    request: Request
    bucket: Bucket
    layout: RunLayout
    started: datetime
    checked: Mapping[str, Any] | None = None

    @property
    def store(self) -> Store | None:
        """What the bucket's S3 can do, as ``check_access`` has found; None where it did not run."""
        from physionet_mirror.records import Store

        found = (self.checked or {}).get("store")
        return Store.from_json(found) if isinstance(found, dict) else None

    @classmethod
    def of(cls, context: Context, **overrides: Any) -> Run:
        """The run of a task's context. ``overrides`` replace params.

        Raises:
            InputError: A param is invalid, or a key of the run's conf is no param of its DAG.
        """
        from physionet_mirror.layout import RunLayout
        from physionet_mirror.request import Request, checked_names

        checked_names(set(context["dag_run"].conf or ()) - _NOT_OURS, context["dag"].params)
        params = {**dict(context["params"]), **overrides}
        if params.get("prefix", "") is None and params.get("project") is None:
            del params["prefix"]  # an audit or a clean-up of the default's
        request = Request.from_params(params)
        run = cls(
            params,
            request,
            open_bucket(request.bucket, request.prefix),
            RunLayout(context["run_id"], context["ti"].dag_id),
            context["dag_run"].start_date or datetime.now(UTC),
            _checked(context),
        )
        if run.store is not None:
            run.bucket.can = run.store
        return run

    def way(self) -> Way:
        """Where the run's files come from, as ``check_access`` has chosen; chosen here where it was marked by hand.

        Raises:
            AccessRefused, NotFound, InputError, DestinationUnavailable: As `choose_way`.
        """
        from physionet_mirror.source.way import Way

        if self.checked is not None:
            return Way.from_json(self.checked)
        return choose_way(self.request.source, self.request.dataset, self.bucket)

    def origin(self, way: Way) -> PhysioNet | AccessPoint:
        """PhysioNet's website or its access point; makes no request.

        Raises:
            InputError: A connection is incomplete or invalid.
        """
        if way.source == "s3":
            return open_access_point(self.request.dataset)
        return PhysioNetHook().source()

    def mover(self, way: Way, connections: int) -> Mover:
        """How one file of the run crosses; makes no request.

        Raises:
            InputError: A connection that cannot be worked with.
        """
        from physionet_mirror.source.copy import ServerSideCopy
        from physionet_mirror.source.download import Download
        from physionet_mirror.source.through import ThroughWorker

        dataset, storage_class = self.request.dataset, self.request.storage_class
        if way.mode == "download":
            source = PhysioNetHook().source(connections)
            return Download(source, dataset, self.bucket, storage_class, self.layout.folder)
        point = open_access_point(dataset)
        if way.mode == "through":
            return ThroughWorker(point, self.bucket, storage_class, self.layout.folder)
        copiers = open_copiers(self.bucket, point)
        bucket = copiers.get(way.keys, self.bucket)
        return ServerSideCopy(point, bucket, storage_class, conditional=way.conditional)


def _checked(context: Context) -> Mapping[str, Any] | None:
    """What ``check_access`` of this run, or of this task's group, has returned."""
    group = context["ti"].task_id.rpartition(".")[0]
    for task_id in ([f"{group}.{ACCESS_CHECK}"] if group else []) + [ACCESS_CHECK]:
        found = context["ti"].xcom_pull(task_ids=task_id, map_indexes=-1)
        if isinstance(found, dict):
            return found
    return None


def dataset_overrides(context: Context, dataset: str | None, dataset_param: str | None) -> dict[str, str]:
    """Params that make a task work on one dataset, below a prefix of the same name, whatever the run's params say.

    Args:
        context: The task's.
        dataset: The dataset's name; None = no such params, unless ``dataset_param`` names it.
        dataset_param: The param that holds the name.
    """
    name = context["params"][dataset_param] if dataset_param else dataset
    return {} if name is None else {"dataset": name, "prefix": name}


SHARD_NAME = "{{ shard_name }}"
"""The ``map_index_template`` of tasks that are mapped over shards; `show_shard` sets what it shows."""


def show_shard(context: Context, shard: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Show the name of a mapped task's shard in Airflow's UI, where its index would stand; returns the shard.

    Raises:
        InputError: There is none: ``missing?`` did not run.
    """
    shown = cast("dict[str, Any]", context)  # Context is a TypedDict of Airflow's own keys
    shown["shard_name"] = shard["name"] if shard is not None else "unknown"
    if shard is None:
        raise no_result("missing?")
    return shard


def result_of(context: Context, task_id: str, key: str = BaseXCom.XCOM_RETURN_KEY) -> Any:
    """The XCom of an earlier task of this run.

    Raises:
        InputError: There is none, e.g. because a person marked the task as success.
    """
    result = context["ti"].xcom_pull(task_ids=task_id, key=key)
    if result is None:
        raise no_result(task_id)
    return result


def no_result(task_id: str) -> InputError:
    """The error of a task that cannot continue because an earlier one left no result."""
    return InputError(
        f"The task {task_id} of this run left no result: it did not run, or was marked as success by hand. Nothing was done. "
        f"Clear {task_id} with what comes after it, so that it runs, or trigger a new run."
    )


@contextmanager
def engine_errors() -> Iterator[None]:
    """Re-raise the engine's errors without their causes, which may quote addresses and headers.

    Also a decorator: ``@engine_errors()``.

    Raises:
        AirflowFailException: In place of a permanent error, with its text: the task fails at once, in every Airflow and
            with whatever retries.
        MirrorError: Any other error of the engine; the task's retries handle it.
    """
    try:
        yield
    except MirrorError as error:
        metrics.count_refusal(error)
        if error.permanent:
            _leave_for_the_end(error)
            raise AirflowFailException(f"{type(error).__name__}: {error}") from None
        error.__cause__ = error.__context__ = None
        raise error from None


def _leave_for_the_end(error: MirrorError) -> None:
    """What ends this task is told when its run has ended."""
    try:
        leave_notice(get_current_context(), str(error))
    except Exception:  # the error itself matters more
        log.debug("No notice was left.", exc_info=True)
