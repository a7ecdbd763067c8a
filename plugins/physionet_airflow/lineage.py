"""What a task reads and writes, for OpenLineage; asked for only where Airflow's OpenLineage provider is installed.

A dataset is named as at PhysioNet, whichever way its files come::

    https://physionet.org   mimic-cxr-jpg/2.1.0               the dataset version
    s3://<bucket>           <prefix>                          the mirror
    s3://<bucket>           <prefix>/_mirror/index.parquet    one of its tables
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from physionet_airflow.hook import PHYSIONET

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.facet_v2 import OutputDatasetFacet

    from physionet_mirror.dataset import Dataset
    from physionet_mirror.s3.bucket import Bucket


@dataclass(frozen=True)
class Place:
    """A dataset as OpenLineage names it.

    Attributes:
        namespace: Where it is.
        name: Its name there.
        files: How many of its files the task has written; None = not counted.
        bytes: Their size.
    """

    namespace: str
    name: str
    files: int | None = None
    bytes: int | None = None


def published(dataset: Dataset) -> Place:
    """A dataset version at PhysioNet."""
    return Place(PHYSIONET, dataset.name)


def stored(bucket: Bucket, path: str = "", files: int | None = None, size: int | None = None) -> Place:
    """The mirror, or one of its files.

    Args:
        bucket: Where it is.
        path: Below the mirror's prefix; empty = all of it.
        files: How many files the task has written.
        size: Their bytes.
    """
    namespace, _, name = bucket.uri(path).removeprefix("s3://").partition("/")
    return Place(f"s3://{namespace}", name.rstrip("/") or "/", files, size)


@dataclass(frozen=True)
class Lineage:
    """What a task has read and written."""

    inputs: Sequence[Place] = ()
    outputs: Sequence[Place] = ()


class WithLineage:
    """An operator that sets ``lineage`` when it executes."""

    lineage = Lineage()

    def get_openlineage_facets_on_complete(self, _: Any) -> OperatorLineage[Any, Any]:
        """Called by the OpenLineage provider, by this name."""
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import InputDataset, OutputDataset
        from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

        def output(place: Place) -> OutputDataset:
            facets: dict[str, OutputDatasetFacet] = {}
            if place.files is not None:
                counted = statistics.OutputStatisticsOutputDatasetFacet(fileCount=place.files, size=place.bytes)
                facets["outputStatistics"] = counted
            return OutputDataset(place.namespace, place.name, outputFacets=facets)

        inputs = [InputDataset(place.namespace, place.name) for place in self.lineage.inputs]
        return OperatorLineage(inputs=inputs, outputs=[output(place) for place in self.lineage.outputs])
