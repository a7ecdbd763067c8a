"""The operators of ``mimic_cxr_training_set``, and its mapped group {missing? → make_tar}."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import AssetAlias, BaseOperator, BaseSensorOperator, PokeReturnValue, task_group

from physionet_airflow.bucket import check_bucket
from physionet_airflow.compat import AirflowSkipException
from physionet_airflow.notify import leave_notice
from physionet_airflow.operators import PLAN, AskOperator, add_asset, other_places, place
from physionet_airflow.run import SHARD_NAME, Run, engine_errors, most_shards, result_of, show_shard, streams
from physionet_mirror.errors import InputError, VerificationFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context, TaskGroup, XComArg

    from physionet_mirror.training.request import TrainingRequest

CPUS = "MIMIC_CXR_CPUS"
"""Environment variable: images that one task decodes at once; empty = as many as the worker lets it use cores."""

TRAINING_SET = AssetAlias("mimic_cxr_training_set")
"""What a run makes; it becomes the asset of its dataset.json's S3 URI."""


def cpus() -> int | None:
    """The value of ``MIMIC_CXR_CPUS``; None = all cores of the task's process.

    Raises:
        InputError: It is not a positive integer.
    """
    text = os.environ.get(CPUS) or ""
    if text and not re.fullmatch(r"0*[1-9][0-9]{0,3}", text):
        raise InputError(f"The environment variable {CPUS} is {text[:40]!r}; it must be a whole number above zero.")
    return int(text) if text else None


def _opened(context: Context) -> tuple[Run, TrainingRequest]:
    """The run, and the training set that it is asked for."""
    from physionet_mirror.training.request import TrainingRequest

    run = Run.of(context, **place(context))
    return run, TrainingRequest.from_params(run.params)


class CheckTrainingSetOperator(BaseOperator):
    """Checks params and bucket: what only a person can put right fails here, within seconds.

    Returns (XCom):
        Name of the set.
    """

    ui_color = "#e8f0e4"

    @engine_errors()
    def execute(self, context: Context) -> str:
        """Check."""
        cpus()
        run, request = _opened(context)
        check_bucket(run.bucket)
        self.log.info("The training set %s is made of %s.", request.name, run.bucket.uri())
        return request.name


class PlanTarsOperator(BaseOperator):
    """Chooses the images, cuts them into tars, and says how many there are and what making them takes.

    Returns (XCom):
        The tars (``PlannedTar.to_json()``) to map over; none in a dry run. Under the key ``plan``: ``dry_run``,
        ``approve_above_gb``, ``gigabytes`` (to be read), ``rows`` (pairs of words), ``uri`` of plan.json.
    """

    ui_color = "#e4ecf4"

    @engine_errors()
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Plan; a dry run returns no tars."""
        from physionet_mirror.steps import training_set

        run, request = _opened(context)
        made = training_set.plan_set(request, run.bucket, run.layout, params=run.params, most_tars=most_shards())
        context["ti"].xcom_push(
            key=PLAN,
            value={
                "dry_run": request.dry_run,
                "approve_above_gb": request.approve_above_gb,
                "gigabytes": made.read_bytes / 1e9,
                "rows": [list(row) for row in made.rows()],
                "uri": run.bucket.uri(run.layout.plan),
            },
        )
        if request.dry_run:
            self.log.info("Dry run: it ends here. Nothing is made. The plan: %s", run.bucket.uri(run.layout.plan))
            return []
        return [tar.to_json() for tar in made.tars]


class ApproveTrainingSetOperator(AskOperator):
    """Passes plans that read up to ``approve_above_gb`` of originals; asks a person about larger ones."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="A large training set waits for your approval", **kwargs)

    def question(self, context: Context) -> str | None:
        """Images by split and label, GB, CPU hours and dollars of a plan above the limit."""
        plan = result_of(context, PLAN, PLAN)
        limit = plan["approve_above_gb"]
        if plan["dry_run"] or not limit or plan["gigabytes"] <= limit:
            self.log.info("%.1f GB to read: no approval needed (limit: %g GB).", plan["gigabytes"], limit)
            return None
        rows = "".join(f"| {name.capitalize()} | {text} |\n" for name, text in plan["rows"])
        return (
            f"This training set reads **{plan['gigabytes']:,.1f} GB** of originals from the bucket, more than the {limit:g} GB "
            f"of `approve_above_gb`.\n\n| | |\n|---|---|\n{rows}\n**Approve** starts it. **Reject** ends the run: everything "
            f"that follows is skipped, and nothing is made. The plan in full: `{plan['uri']}`"
        )


class MissingTarSensor(BaseSensorOperator):
    """Skips a tar that is there, proven, and made of the same inputs; else returns it. Never pokes again.

    Args:
        tar: ``PlannedTar.to_json()``, one of the plan's.

    Returns (XCom):
        The tar.
    """

    template_fields = ("tar",)
    ui_color = "#e8f0e4"

    def __init__(self, *, tar: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tar = tar

    @engine_errors()
    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        show_shard(context, self.tar)
        from physionet_mirror.layout import TrainingLayout
        from physionet_mirror.steps import training_set

        run, request = _opened(context)
        tar = training_set.PlannedTar.from_json(self.tar)
        found = training_set.find_tar(run.bucket, TrainingLayout(request.name), tar)
        if found is not None:
            raise AirflowSkipException(f"{tar.name} is there, made of the same {tar.images:,} images in the same way.")
        return PokeReturnValue(is_done=True, xcom_value=dict(self.tar))


class MakeTarOperator(BaseOperator):
    """Reads the originals of one tar, makes the small copies on all cores, and stores the tar.

    Args:
        tar: What `MissingTarSensor` returned; None if it did not run.

    Returns (XCom):
        ``name``, ``images``, ``bytes``, ``sha256`` and the number ``left_out``.
    """

    template_fields = ("tar",)
    ui_color = "#dcebf7"

    def __init__(self, *, tar: Mapping[str, Any] | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tar = tar

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Make the tar."""
        planned = show_shard(context, self.tar)
        from physionet_mirror.steps import training_set

        run, request = _opened(context)
        tar = training_set.PlannedTar.from_json(planned)
        made = training_set.make_tar(tar, request, run.bucket, cpus=cpus())
        figures = made.to_json()
        return {
            **{key: figures[key] for key in ("name", "images", "bytes", "sha256")},
            "left_out": len(made.left_out),
        }


class VerifyTrainingSetOperator(BaseOperator):
    """Proves every tar, writes index and card, and fails if a tar is missing. Use it with ``trigger_rule="all_done"``.

    Returns (XCom):
        The figures that the asset event carries.
    """

    ui_color = "#e8f0e4"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[TRAINING_SET], **kwargs)

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any] | None:
        """Verify, describe, judge."""
        from physionet_mirror.layout import TrainingLayout
        from physionet_mirror.steps import training_set

        if others := other_places(context):  # first, as it skips where there is nothing to do
            self.log.warning("%s", others)
            leave_notice(context, others)
        plan = context["ti"].xcom_pull(task_ids=PLAN, key=PLAN)
        if plan is None:
            raise VerificationFailed(
                "There is no plan, so nothing was made: the task that failed before says why and what to do. What was made "
                "before is untouched."
            )
        if plan["dry_run"]:
            self.log.info("Dry run: nothing was made.\n%s", "\n".join(f"{name}: {text}" for name, text in plan["rows"]))
            return None
        run, request = _opened(context)
        made = training_set.verify_set(request, run.bucket, run.layout, run.request.dataset)
        figures: dict[str, Any] = {
            "name": made.name,
            "images": made.images,
            "bytes": made.bytes,
            "tars": len(made.tars),
            "left_out": len(made.left_out),
            "splits": {split.name: split.images for split in made.splits},
        }
        add_asset(context, TRAINING_SET, run.bucket.uri(TrainingLayout(request.name).card), figures)
        return figures


def make_tars(tars: XComArg) -> TaskGroup:
    """Map over a plan's tars: skip those that are there, make the others, at most ``PHYSIONET_STREAMS`` at once."""

    @task_group(group_id="make_tar", tooltip="One tar: its originals are read and made small")
    def make_tar(tar: Any) -> None:
        missing = MissingTarSensor(
            task_id="missing", task_display_name="missing?", tar=tar, map_index_template=SHARD_NAME
        )
        MakeTarOperator(
            task_id="make",
            tar=cast("Mapping[str, Any]", missing.output),  # the sensor's result, once the task runs
            map_index_template=SHARD_NAME,
            max_active_tis_per_dagrun=streams(),
        )

    return cast("TaskGroup", make_tar.expand(tar=tars))
