"""Build two tables beside the training index: what the report of each study says, and which hospital stay it belongs to.

| task | what it does |
|---|---|
| `mimic_cxr.check_access`, `.fetch_files` | The reports of MIMIC-CXR (`mimic-cxr-reports.zip`) and its lists, each proven against PhysioNet's checksums. |
| `mimiciv.…` | The same for MIMIC-IV: `hosp/admissions`, `hosp/patients`, `icu/icustays`. |
| `mimic_iv_ed.…` | The same for MIMIC-IV-ED: `ed/edstays`. |
| `build_reports` | Writes `_mirror/reports.parquet`: one row a study, by sections (findings, impression …), with a status. |
| `build_links` | Writes `_mirror/links.parquet`: one row a study, with its admission, emergency and ICU stay, hours since each, age and gender. |
| `judge` | Says what was built, and fails if nothing was. |

Each project has a data use agreement of its own. One that this account may not read is skipped, with the page that says what
is missing in the log of its `check_access`; the rest goes on. Files that are there already are not fetched again.

**Runs** when you trigger it, and, once it is unpaused, whenever a run brings the training index up to date (the asset alias
`mimic_cxr_jpg_index`): then for the bucket and prefix of that index.

**Needs** the connections `physionet_default` and `aws_default`, as `mimic_cxr_jpg` does, and `_mirror/manifest.parquet` below
`prefix`, which that DAG and `mimic_cxr_metadata` make. Logs and events hold counts, never the text of a report.

**Emits** asset events of the two tables through the aliases `mimic_cxr_jpg_reports` and `mimic_cxr_jpg_links`.
"""

from __future__ import annotations

from airflow.sdk import DAG, TaskGroup

from physionet_airflow.clinical import (
    PARTS,
    BuildLinksOperator,
    BuildReportsOperator,
    FetchFilesOperator,
    JudgeClinicalOperator,
    ProjectCheckSensor,
)
from physionet_airflow.dag import defaults
from physionet_airflow.operators import INDEX
from physionet_airflow.params import clinical_params

with DAG(
    dag_id="mimic_cxr_clinical",
    dag_display_name="MIMIC-CXR reports and links",
    description="Reports by their sections, and each study's hospital stays, as two tables beside the index.",
    doc_md=__doc__,
    schedule=[INDEX],
    max_active_runs=1,
    params=clinical_params(),
    **defaults(),
    tags=["physionet", "mimic-cxr"],
):
    fetched = {}
    for part, group in PARTS.items():
        with TaskGroup(group):
            fetched[part] = FetchFilesOperator(task_id="fetch_files", part=part)
            ProjectCheckSensor(task_id="check_access", part=part) >> fetched[part]
    build_reports = BuildReportsOperator(task_id="build_reports")
    build_links = BuildLinksOperator(task_id="build_links", trigger_rule="none_failed")
    judge = JudgeClinicalOperator(task_id="judge", trigger_rule="none_failed")

    fetched["cxr"] >> build_reports >> judge
    [fetched["hosp"], fetched["ed"]] >> build_links >> judge
