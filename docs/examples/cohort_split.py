"""A cohort of one's own, written anew whenever the mirror has brought the training index up to date.

An example: copy it into your dags folder and change what is below "the cohort". It is scheduled on the asset alias
`mimic_cxr_jpg_index`, which each green run of `mimic_cxr_jpg` and `mimic_cxr_jpg_backfill` updates, and it reads nothing but
`_mirror/index.parquet`: verified images only, no listing of the bucket.

The result, beside the index: `cohorts/pneumonia_frontal.csv`, one image a line with its key, label and split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetAlias, dag, task

if TYPE_CHECKING:
    import pandas as pd

INDEX = AssetAlias("mimic_cxr_jpg_index")
NAME = "pneumonia_frontal"


def cohort(index: pd.DataFrame) -> pd.DataFrame:
    """The cohort: frontal images of which the report says that there is pneumonia, or that there is none."""
    frontal = index["view"].isin(["AP", "PA"])
    stated = index["Pneumonia"].isin([0, 1])  # neither -1, uncertain, nor empty, not mentioned
    chosen = index.loc[frontal & stated, ["key", "subject_id", "study_id", "Pneumonia", "split"]]
    return chosen.astype({"Pneumonia": "int8"}).sort_values("key", ignore_index=True)


@task
def write_split(triggering_asset_events: Any = None) -> str:
    """Read the index that the event is about, and write the cohort beside it; returns the file's URI."""
    import io

    import pandas as pd
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    # s3://bucket/prefix/_mirror/index.parquet
    bucket, key = S3Hook.parse_s3_url(triggering_asset_events[INDEX][-1].asset.uri)
    hook = S3Hook()
    index = pd.read_parquet(io.BytesIO(hook.get_key(key, bucket).get()["Body"].read()))
    rows = cohort(index)
    target = f"{key.removesuffix('_mirror/index.parquet')}cohorts/{NAME}.csv"
    hook.load_string(rows.to_csv(index=False), target, bucket, replace=True)
    print(f"{len(rows):,} of {len(index):,} images, {rows['subject_id'].nunique():,} patients")
    print(rows.groupby(["split", "Pneumonia"]).size().to_string())
    return f"s3://{bucket}/{target}"


@dag(schedule=INDEX, catchup=False, doc_md=__doc__, tags=["example"])
def cohort_split() -> None:
    """Index in, split file out."""
    write_split()


cohort_split()
