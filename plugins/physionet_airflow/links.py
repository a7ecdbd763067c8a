"""The links on tasks: live progress, report, the files in S3, the dataset's page at PhysioNet.

Each opens the page (see physionet_airflow/page), which checks the reader's rights and knows where the run's files
lie. So a link exists as soon as its task does, reveals nothing by itself, and works as long as Airflow knows the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from physionet_airflow.urls import run_url

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


class PageLink(BaseOperatorLink):
    """A button on a task that opens a view of its run.

    Args:
        name: The button's label.
        view: The last part of the page's address; empty = the live page.
        classes: Names of the operators in ``physionet_airflow.operators`` whose tasks get it.
    """

    def __init__(self, name: str, view: str, classes: tuple[str, ...]) -> None:
        self._name, self._view, self._classes = name, view, classes

    @property
    def name(self) -> str:
        return self._name

    @property
    def xcom_key(self) -> str:
        return f"_link_physionet_{self._view or 'live'}"

    @property
    def operators(self) -> list[type[Any]]:  # type: ignore[override]
        """Imported when the API server asks: this module is loaded by every Airflow process."""
        from physionet_airflow import operators

        return [getattr(operators, name) for name in self._classes]

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        return run_url(ti_key.dag_id, ti_key.run_id, self._view)


_SHARDS = ("PlanShardsOperator", "StreamShardOperator", "VerifyOperator")

LINKS = [
    PageLink("Live progress", "", ("FetchMetadataOperator", *_SHARDS)),
    PageLink("Report", "report", ("VerifyOperator",)),
    PageLink("Files in S3", "s3", _SHARDS),
    PageLink("Dataset at PhysioNet", "dataset", ("FetchMetadataOperator", *_SHARDS)),
]
