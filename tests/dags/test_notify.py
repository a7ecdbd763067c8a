"""People are told by mail how their runs are, by an address in the environment and no edited DAG."""

from __future__ import annotations

import json

from tests.conftest import AirflowHome
from tests.smtp import mail_server

TAKEN = '{"conn_type": "generic"}'
HERE = "http://airflow.example.org/below"


def test_a_question_is_told_and_a_broken_notifier_fails_nothing(airflow_home: AirflowHome, bucket_name: str) -> None:
    """With connections of other ids, where somebody else has taken the usual ones."""
    asked = airflow_home.answering("mimic_cxr_jpg", "Approve")
    conf = {"bucket": bucket_name, "sample_size": 12, "approve_above_gb": 1e-6}
    with mail_server() as mails:
        done = airflow_home.run(
            *("dags", "test", "mimic_cxr_jpg", "-c", json.dumps(conf)),
            PHYSIONET_CONN_ID="lab_physionet",
            MIMIC_CXR_AWS_CONN_ID="lab_s3",
            AIRFLOW_CONN_LAB_PHYSIONET=airflow_home.env["AIRFLOW_CONN_PHYSIONET_DEFAULT"],
            AIRFLOW_CONN_LAB_S3=airflow_home.env["AIRFLOW_CONN_AWS_DEFAULT"],
            AIRFLOW_CONN_PHYSIONET_DEFAULT=TAKEN,
            AIRFLOW_CONN_AWS_DEFAULT=TAKEN,
            PHYSIONET_NOTIFY="smtp://nobody_made_this?to=a@example.org smtp://lab_mail?to=lab@example.org",
            AIRFLOW_CONN_LAB_MAIL=json.dumps(mails.connection()),
            AIRFLOW__API__BASE_URL=HERE,
        )
    assert asked.wait(30) == 0
    assert done.returncode == 0, done.stdout[-4000:]

    assert mails.subjects() == ["MIMIC-CXR-JPG asks for your approval"]
    (mail,) = mails.mails
    assert mail["To"] == "lab@example.org"
    assert f'<a href="{HERE}/required_actions">' in mails.text()
    assert "Images selected: 12 (" in mails.text()
    assert done.stdout.count("SmtpNotifier (connection nobody_made_this) could not tell") == 1


def test_a_variable_that_cannot_be_read_is_an_import_error_in_words(airflow_home: AirflowHome) -> None:
    listed = airflow_home.run("dags", "list-import-errors", "--local", PHYSIONET_NOTIFY="pigeon://roof")
    assert "pigeon is no kind of notifier" in " ".join(listed.stdout.split())
