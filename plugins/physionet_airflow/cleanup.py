"""The operators of ``mimic_cxr_cleanup``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from physionet_airflow.notify import leave_notice
from physionet_airflow.operators import AskOperator
from physionet_airflow.run import Run, engine_errors, result_of
from physionet_mirror.words import size

if TYPE_CHECKING:
    from airflow.sdk import Context

LISTING = "list_objects"
"""Task id of the listing."""


class ListObjectsOperator(BaseOperator):
    """Lists what would be deleted, with counts and GB; deletes nothing.

    Returns (XCom):
        ``objects``, ``bytes``, ``versions``, ``by_kind``, ``listing`` (URI), ``destination``.
    """

    ui_color = "#e4ecf4"

    @engine_errors()
    def execute(self, context: Context) -> dict[str, Any]:
        """List."""
        from physionet_mirror.steps import cleanup

        params = context["params"]
        run = Run.of(context)
        deletions = cleanup.list_deletions(run.bucket, params["what"], params["run_id"], params["training_set"])
        return cleanup.write_listing(run.bucket, run.layout, deletions, noun=run.request.selection.noun)


class ApproveDeletionOperator(AskOperator):
    """Asks a person before anything is deleted, always."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="Files are about to be deleted", **kwargs)

    def question(self, context: Context) -> str | None:
        """Counts and GB of what would be deleted."""
        found = result_of(context, LISTING)
        if context["params"]["dry_run"] or not found["objects"]:
            return None
        kinds = "".join(f"| {kind} | {count:,} |\n" for kind, count in found["by_kind"].items())
        of_a_set = context["params"]["what"] == "training_set"
        again = "mimic_cxr_training_set makes the set again" if of_a_set else "PhysioNet has the files still"
        versions = ", old versions and delete markers included" if found["versions"] else ""
        return (
            f"**{found['objects']:,} objects, {size(found['bytes'])}** below `{found['destination']}/` will be deleted"
            f"{versions}. This cannot be undone; {again}.\n\n| | |\n|---|---|\n{kinds}\n"
            f"Which ones: `{found['listing']}`. Reports of earlier runs are kept.\n\n"
            "**Approve** deletes exactly these. **Reject** ends the run; nothing is deleted."
        )


class DeleteListedOperator(BaseOperator):
    """Deletes exactly what was listed and approved.

    Returns (XCom):
        ``deleted`` (objects) and ``bytes``.
    """

    ui_color = "#f7dcdc"

    @engine_errors()
    def execute(self, context: Context) -> dict[str, int]:
        """Delete, unless this is a dry run or nothing was listed."""
        from physionet_mirror.steps import cleanup

        found = result_of(context, LISTING)
        if context["params"]["dry_run"] or not found["objects"]:
            self.log.info("%s. Nothing was deleted.", "Dry run" if context["params"]["dry_run"] else "There is nothing")
            return {"deleted": 0, "bytes": 0}
        run = Run.of(context)
        done = cleanup.delete_listed(run.bucket, run.layout)
        said = f"{done['deleted']:,} objects deleted, {size(done['bytes'])}. The list: {found['listing']}"
        self.log.info(said)
        leave_notice(context, said)
        return done
