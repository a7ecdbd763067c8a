"""Operators: metadata, plan, approval, stream, verify. Each is a thin shell around one step of the engine."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import AssetAlias, BaseOperator

from physionet_airflow.bucket import open_access_point, open_bucket
from physionet_airflow.compat import AirflowException, AirflowFailException, AirflowSkipException, TaskAsked
from physionet_airflow.dags_test import PATIENCE, answer_to, is_dags_test
from physionet_airflow.hook import PhysioNetHook
from physionet_airflow.lineage import Lineage, WithLineage, published, stored
from physionet_airflow.metrics import ShardMetrics
from physionet_airflow.notify import leave_notice, notifiers
from physionet_airflow.run import Run, dataset_overrides, engine_errors, most_shards, result_of, show_shard, streams
from physionet_mirror.errors import VerificationFailed
from physionet_mirror.words import size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from physionet_mirror.steps.mirror_shard import Stop

PLAN = "plan"
"""Task id of the plan, and the key of its XCom with the few figures that later tasks need."""

TABLES = AssetAlias("mimic_cxr_jpg_tables")
IMAGES = AssetAlias("mimic_cxr_jpg_images")
INDEX = AssetAlias("mimic_cxr_jpg_index")
"""What a run produces; each becomes the asset of its S3 URI, which is only known when the run is."""


class FetchMetadataOperator(WithLineage, BaseOperator):
    """Brings tables, lists and SHA256SUMS.txt into the bucket, each proven, and builds the manifest.

    Args:
        dataset: Name of the dataset, which is then its prefix too; None = as the params say.
        dataset_param: The param that names the dataset, where it is one of several.

    Returns (XCom):
        ``images``, ``files``, ``fetched``, ``changed``, ``sums_sha256`` of `fetch_metadata.Metadata`.
    """

    ui_color = "#e4ecf4"

    def __init__(self, *, dataset: str | None = None, dataset_param: str | None = None, **kwargs: Any) -> None:
        super().__init__(outlets=[TABLES], **kwargs)
        self.dataset, self.dataset_param = dataset, dataset_param

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch what is missing or has changed."""
        from physionet_mirror.layout import MANIFEST
        from physionet_mirror.steps import fetch_metadata

        run = Run.of(context, **dataset_overrides(context, self.dataset, self.dataset_param))
        with closing(run.origin(run.way())) as source:
            found = fetch_metadata.fetch_metadata(source, run.bucket, run.request.dataset)
        written = [stored(run.bucket, path) for path in (*found.files, MANIFEST)]
        self.lineage = Lineage([published(run.request.dataset)], written)
        figures = found.to_json()
        del figures["notes"]
        if found.fetched or found.changed:
            add_asset(context, TABLES, run.bucket.uri("SHA256SUMS.txt"), figures)
        return figures


class PlanShardsOperator(BaseOperator):
    """Chooses the files, cuts them into shards, and estimates time, traffic and cost.

    Returns (XCom):
        The shards (``Shard.to_json()``) to map over; none in a dry run. Under the key ``plan``: ``images``, ``shards``,
        ``dry_run``, ``approve_above_gb``, ``estimate`` (``Estimate.to_json()``), ``table`` (text), ``uri`` of plan.json.
    """

    ui_color = "#e4ecf4"

    @engine_errors()
    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Plan; a dry run returns no shards."""
        from physionet_mirror.steps import plan

        with ExitStack() as open_now:
            run = Run.of(context)
            way = run.way()
            site = None
            if run.request.selection.noun == "file" and way.source == "physionet":
                site = open_now.enter_context(closing(PhysioNetHook().source(streams())))
            made = plan.make_plan(
                run.request,
                run.bucket,
                run.layout,
                streams=streams(),
                params=run.params,
                file_list=self._file_list(run),
                part=self._part(context, run),
                most_shards=most_shards(),
                way=way,
                point=open_access_point(run.request.dataset) if way.source == "s3" else None,
                site=site,
                store=run.store,
            )
        context["ti"].xcom_push(
            key=PLAN,
            value={
                "images": made.estimate.images,
                "shards": len(made.shards),
                "dry_run": run.request.dry_run,
                "approve_above_gb": run.request.approve_above_gb,
                "estimate": made.estimate.to_json(),
                "table": made.table(),
                "uri": run.bucket.uri(run.layout.plan),
            },
        )
        if run.request.dry_run:
            self.log.info("Dry run: it ends here. Nothing is fetched. The plan: %s", run.bucket.uri(run.layout.plan))
            return []
        return [shard.to_json() for shard in made.shards]

    def _part(self, context: Context, run: Run) -> int | None:
        """The part of the day (UTC) of the run's logical date, or, without one, of the day it was triggered; None = no parts.

        The logical date is what the person sees, also of a run triggered by hand; Airflow gives such a run the data
        interval before, or none at all.
        """
        if run.request.slices is None:
            return None
        from physionet_mirror.shards import slice_of_day

        day = context["dag_run"].logical_date or context["dag_run"].run_after
        first = context["dag"].start_date
        assert first is not None, "a DAG whose runs take slices has a start_date"
        part = slice_of_day(day, first, run.request.slices)
        self.log.info("Part %d of %d, that of %s.", part + 1, run.request.slices, day.astimezone(UTC).date())
        return part

    def _file_list(self, run: Run) -> list[str] | None:
        from physionet_mirror.steps import plan

        if run.request.file_list is None:
            return None
        name, _, path = run.request.file_list.removeprefix("s3://").partition("/")
        return plan.read_list(open_bucket(name, ""), path)


class AskOperator(ApprovalOperator):
    """Asks a person under Required Actions; a refusal skips every later task, and the run ends green.

    The task fails if nobody answers in time. Subclasses write the question, or say that there is none.

    ``airflow dags test`` waits for `PATIENCE` at most.

    Args:
        response_timeout: How long to wait for an answer.
    """

    ui_color = "#f7f0dc"
    instead = ""
    """How to start a run that asks nobody; empty where there is no way."""

    def __init__(self, *, response_timeout: timedelta = timedelta(days=3), **kwargs: Any) -> None:
        super().__init__(
            body="What is asked is known when the tasks before this one are done.",
            response_timeout=response_timeout,
            ignore_downstream_trigger_rules=True,
            **kwargs,
        )

    def question(self, context: Context) -> str | None:
        """The approval page in Markdown, or None where there is nothing to ask."""
        raise NotImplementedError

    @engine_errors()
    def execute(self, context: Context) -> Any:
        """Return at once, or wait for a person."""
        question = self.question(context)
        if question is None:
            return None
        self.body = question  # set here, after templates were rendered: nothing in it is a template
        self.notifiers = notifiers("approval", question)
        if is_dags_test():
            return self._ask_whoever_watches(context)
        self.log.info("Waiting for an answer under Required Actions, at most %s.", self.response_timeout)
        return super().execute(context)

    def _ask_whoever_watches(self, context: Context) -> Any:
        self.response_timeout = min(self.response_timeout or PATIENCE, PATIENCE)
        self.log.warning(
            "This run asks for an approval, and `airflow dags test` cannot give it. Nothing is done before the answer. Give it "
            "within %s under Required Actions, in the UI of an Airflow that has the same database.%s",
            self.response_timeout,
            self.instead,
        )
        try:
            super().execute(context)
        except TaskAsked:
            answer = answer_to(context, self.response_timeout)
        return self.execute_complete(context, answer or {"error": "Nobody answered.", "error_type": "timeout"})

    def process_trigger_event_error(self, event: dict[str, Any]) -> None:
        """Nobody answered."""
        if event.get("error_type") == "timeout":
            raise AirflowFailException(
                f"Nobody answered within {self.response_timeout}, so nothing was done after the question. Trigger the run "
                "again and answer under Required Actions in time."
            )
        super().process_trigger_event_error(event)


class ApproveLargePlanOperator(AskOperator):
    """Passes plans up to the param ``approve_above_gb``; asks a person about larger ones."""

    instead = " Or start it again with approve_above_gb=0, which asks nobody."

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="A large plan waits for your approval", **kwargs)

    def question(self, context: Context) -> str | None:
        """Images, GB, hours and dollars of a plan above the limit."""
        from physionet_mirror.records import Estimate

        plan = result_of(context, PLAN, PLAN)
        estimate = Estimate.from_json(plan["estimate"])
        limit = plan["approve_above_gb"]
        if plan["dry_run"] or not limit or estimate.gigabytes <= limit:
            self.log.info("%.1f GB to fetch: no approval needed (limit: %g GB).", estimate.gigabytes, limit)
            return None
        return _question(plan, estimate, limit)


def _question(plan: Mapping[str, Any], estimate: Any, limit: float) -> str:
    """The approval page, in Markdown."""
    from physionet_mirror.words import WAYS, money

    return "\n".join(
        [
            f"This plan fetches **{estimate.gigabytes:,.1f} GB**, more than the {limit:g} GB of `approve_above_gb`.",
            "",
            "| | |",
            "|---|---|",
            f"| {estimate.noun.capitalize()}s selected | {estimate.images:,} ({size(estimate.bytes)}) |",
            f"| To be fetched | {estimate.missing:,} ({estimate.size_range}) |",
            *([f"| Sizes from | {estimate.sizes} |"] if estimate.sizes else []),
            f"| From | {WAYS[estimate.mode]} |",
            f"| Time | {estimate.time} ({estimate.speed}) |",
            *([f"| Transfer out of us-east-1, once | {estimate.transfer} |"] if estimate.transfer else []),
            *([f"| Reading it all back | {estimate.reading} |"] if estimate.read_back else []),
            f"| Storage a month, {estimate.storage_class} | {money(estimate.monthly_cost)} |",
            f"| S3 requests, once | {money(estimate.once_cost)} |",
            f"| Shards | {plan['shards']:,} |",
            "",
            f"Prices: AWS's list prices of {estimate.prices_as_of}.",
            "",
            "**Approve** starts the transfer. **Reject** ends the run: everything that follows is skipped, and nothing is "
            f"fetched. The plan in full: `{plan['uri']}`",
        ]
    )


class StreamShardOperator(WithLineage, BaseOperator):
    """Streams the missing images of one shard into the bucket.

    Args:
        shard: What `MissingSensor` returned; None if it did not run.

    Returns (XCom):
        ``shard``, ``stored``, ``bytes``, ``seconds``, ``retries``; the rest is in the shard's result file in S3.
    """

    template_fields = ("shard",)
    ui_color = "#dcebf7"

    def __init__(self, *, shard: Mapping[str, Any] | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard = shard
        self._stop: Stop | None = None
        self._killed = False

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """Stream until each image is stored or reported as failed."""
        shard = show_shard(context, self.shard)
        from physionet_mirror.records import Shard
        from physionet_mirror.steps import mirror_shard

        self._stop = mirror_shard.Stop()
        run = Run.of(context)
        connections = run.request.share(streams())
        result = mirror_shard.stream_shard(
            Shard.from_json(shard),
            run.request,
            run.mover(run.way(), connections),
            run.bucket,
            run.layout,
            connections=connections,
            stop=self._stop,
            stops_at=run.request.stops_at(run.started),
            try_number=context["ti"].try_number,
            watch=ShardMetrics(shard["index"]),
        )
        written = stored(run.bucket, files=result.stored, size=result.bytes)
        self.lineage = Lineage([published(run.request.dataset)], [written])
        if self._killed:
            raise AirflowException(
                f"Told to stop after {result.stored:,} of {result.todo:,} {run.request.selection.noun}s, which are stored. "
                "The next try goes on from there."
            )
        figures = result.to_json()
        return {key: figures[key] for key in ("shard", "stored", "bytes", "seconds", "retries")}

    def on_kill(self) -> None:
        """Finish the images in flight, start no others, and end."""
        self._killed = True
        if self._stop is not None:
            self._stop()


class VerifyOperator(WithLineage, BaseOperator):
    """Compares the whole selection with the bucket, writes report and index, and fails if anything is missing or wrong.

    Use it with ``trigger_rule="all_done"``: it runs however the shards ended, decides whether the run succeeds, and names any
    earlier task that failed.

    Returns (XCom):
        The figures that the asset event carries.
    """

    ui_color = "#e8f0e4"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[IMAGES, INDEX], **kwargs)

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any] | None:
        """Verify, report, judge."""
        from physionet_mirror.layout import INDEX as INDEX_PATH
        from physionet_mirror.layout import MANIFEST
        from physionet_mirror.report import document
        from physionet_mirror.steps import verify

        self._check_earlier_tasks(context)
        plan = result_of(context, PLAN, PLAN)
        if plan["dry_run"]:
            self.log.info("Dry run: nothing was fetched, so nothing is verified.\n%s", plan["table"])
            leave_notice(context, f"Dry run: nothing was fetched. The plan: {plan['uri']}")
            return None
        run = Run.of(context)
        verdict, written = verify.verify_run(
            run.request,
            run.bucket,
            run.layout,
            params=run.params,
            started=run.started,
            software=_software(),
        )
        figures = document.figures(written)
        self.lineage = Lineage([stored(run.bucket), stored(run.bucket, MANIFEST)], [stored(run.bucket, INDEX_PATH)])
        verdict.raise_if_failed(run.bucket.uri(run.layout.report_html))
        add_asset(context, IMAGES, run.bucket.uri(), figures)
        add_asset(context, INDEX, run.bucket.uri(INDEX_PATH), figures)
        leave_notice(
            context,
            f"{figures['verified']:,} of {figures['selected']:,} selected {run.request.selection.noun}s verified ({run.request.verify}), "
            f"{size(figures['bytes'])}; this run fetched {figures['stored']:,}. The report: {figures['report']}",
        )
        return figures

    def _check_earlier_tasks(self, context: Context) -> None:
        """Fail if a task before the shards failed: there is nothing to verify then, and that is no success."""
        ti = context["ti"]
        before = sorted(_unmapped_upstream(self))
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=before, run_ids=[ti.run_id]).get(ti.run_id, {})
        failed = [name for name in before if str(states.get(name)) == "failed"]
        if failed:
            raise VerificationFailed(
                f"The run did not come to its shards: the task {failed[0]} failed, and its log says why and what to do. "
                "Nothing was fetched in this run; what was stored before is untouched."
            )


def _unmapped_upstream(task: BaseOperator) -> set[str]:
    return {t.task_id for t in task.get_flat_relatives(upstream=True) if t.get_closest_mapped_task_group() is None}


def place(context: Context) -> dict[str, str]:
    """Bucket and prefix of the index whose event started this run; none where a person started it.

    Where several mirrors have events, the newest one's: `other_places` names the rest.

    Raises:
        AirflowSkipException: The events are of projects without radiographs.
    """
    places = _places(context)
    return places[0] if places else {}


def other_places(context: Context) -> str:
    """Says which other mirrors' events were waiting when this run began, and what to do; empty where there are none."""
    confs = [json.dumps(place) for place in _places(context)[1:]]
    if not confs:
        return ""
    return (
        "The index of other mirrors has changed too, and this run did nothing for them: a run works on one. Trigger "
        f"{context['ti'].dag_id} for {'it' if len(confs) == 1 else 'each'}, with the conf {' or '.join(confs)}."
    )


def _places(context: Context) -> list[dict[str, str]]:
    """Bucket and prefix of each mirror of radiographs whose index' events started this run, the newest first."""
    from physionet_mirror.dataset import KNOWN
    from physionet_mirror.layout import INDEX as INDEX_PATH

    events = context.get("triggering_asset_events")
    if not events:  # Airflow 3.1 has no hash of an alias, so that an empty dict cannot be asked
        return []
    try:
        found = sorted(events[INDEX], key=lambda event: event.timestamp, reverse=True)
    except KeyError:
        return []
    datasets: dict[str, str] = {}  # by URI; an event that a person made names none
    for event in found:
        datasets.setdefault(str(event.asset.uri), str((event.extra or {}).get("dataset") or ""))
    indexes = {
        uri: name for uri, name in datasets.items() if uri.startswith("s3://") and uri.endswith(f"/{INDEX_PATH}")
    }
    of_images = [uri for uri, name in indexes.items() if not name or (name in KNOWN and KNOWN[name].describes_images)]
    if indexes and not of_images:
        raise AirflowSkipException(
            f"The index that has changed is of {', '.join(sorted(set(indexes.values())))}, which has no radiographs, so there is "
            "nothing to do."
        )
    split = (uri.removeprefix("s3://").removesuffix(f"/{INDEX_PATH}").partition("/") for uri in of_images)
    return [{"bucket": bucket, "prefix": prefix} for bucket, _, prefix in split]


def add_asset(context: Context, alias: AssetAlias, uri: str, figures: Mapping[str, Any]) -> None:
    """Emit an event of the asset at this URI, through the alias, with these figures."""
    from airflow.sdk import Asset

    context["outlet_events"][alias].add(Asset(uri.rstrip("/")), extra=dict(figures))


def _software() -> dict[str, str]:
    from importlib.metadata import version

    return {"Airflow": version("apache-airflow"), "amazon provider": version("apache-airflow-providers-amazon")}
