"""The part of the graph that the DAGs share: a mapped group {missing? → stream}, one instance a shard."""

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
    """Map over a plan's shards: skip the complete ones, stream the others, at most ``PHYSIONET_STREAMS`` at once.

    Args:
        shards: The output of `PlanShardsOperator`.
        runs_share_streams: Limit the streams of all runs of the DAG together, not of each run.
    """

    @task_group(group_id="mirror_shard", tooltip="One shard: its missing files are streamed")
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
