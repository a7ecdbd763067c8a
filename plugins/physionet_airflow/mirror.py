"""The part of a graph that DAGs share: one mapped group a shard, {missing? → stream}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import task_group

from physionet_airflow.operators import StreamShardOperator
from physionet_airflow.run import SHARD_NAME, pool, streams
from physionet_airflow.sensors import MissingSensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import TaskGroup, XComArg


def mirror_shards(shards: XComArg, *, runs_share_streams: bool = False) -> TaskGroup:
    """Map over a plan's shards: skip each that is complete, stream the others, at most ``PHYSIONET_STREAMS`` at once.

    Args:
        shards: The output of `PlanShardsOperator`.
        runs_share_streams: Hold the number of streams over all runs of the DAG together, not over each.
    """

    @task_group(group_id="mirror_shard", tooltip="One shard: what is missing of it is streamed")
    def mirror_shard(shard: Any) -> None:
        missing = MissingSensor(
            task_id="missing", task_display_name="missing?", shard=shard, map_index_template=SHARD_NAME
        )
        StreamShardOperator(
            task_id="stream",
            shard=cast("Mapping[str, Any]", missing.output),  # the sensor's result, once the task runs
            map_index_template=SHARD_NAME,
            pool=pool(),
            pool_slots=1,
            max_active_tis_per_dagrun=streams(),
            max_active_tis_per_dag=streams() if runs_share_streams else None,
        )

    return cast("TaskGroup", mirror_shard.expand(shard=shards))
