"""An outage when a run begins: waited for without a worker, told once, and left to no one's memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.triggers.base import TriggerEvent

from demo import stack
from demo.lookalike import Fault, Kind, Lookalike
from physionet_airflow import notify, sensors
from physionet_airflow.compat import AirflowRescheduleException, AirflowSensorTimeout
from physionet_airflow.params import mirror_params
from physionet_airflow.sensors import AccessCheckSensor
from physionet_airflow.triggers import OutageTrigger
from physionet_mirror.dataset import MIMIC_CXR_JPG
from physionet_mirror.source import outage
from physionet_mirror.source.physionet import USER_AGENT
from tests.smtp import mail_server

try:
    from airflow.sdk.exceptions import TaskDeferred
    from airflow.sdk.serde import deserialize, serialize
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred
    from airflow.serialization.serde import deserialize, serialize

OUTAGES = {
    "502": Fault(Kind.STATUS, status=502, attempts=None),
    "503": Fault(Kind.STATUS, status=503, attempts=None),
    "an HTML page for everything": Fault(Kind.LOGIN_PAGE, attempts=None),
    "reset": Fault(Kind.RESET_BEFORE, attempts=None),
}


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def api_server(triggerer: str | None) -> Iterator[str]:
    """What Airflow's API server says of its triggerer, at the address that its tasks know."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/below/api/v2/monitor/health"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"triggerer": {"status": triggerer}} if known else {}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Health) as url:
        yield f"{url}/below/execution/"


@pytest.fixture
def sensor(
    monkeypatch: pytest.MonkeyPatch,
    physionet: Lookalike,
    reader: tuple[str, str],
    s3_server: stack.S3Server,
    bucket_name: str,
) -> tuple[AccessCheckSensor, Any]:
    """A check, and the context of its task."""
    account = {"conn_type": "http", "host": physionet.url, "login": reader[0], "password": reader[1]}
    monkeypatch.setenv("AIRFLOW_CONN_PHYSIONET_DEFAULT", json.dumps(account))
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(s3_server.connection()))
    monkeypatch.setattr(sensors, "QUESTION_EVERY", 0.05)
    with DAG("mimic_cxr_jpg", params=mirror_params()) as dag:
        made = AccessCheckSensor(task_id="check_access")
    context = {
        "dag": dag,
        "params": {**dag.params.dump(), "bucket": bucket_name},
        "dag_run": SimpleNamespace(conf={}, start_date=datetime.now(UTC)),
        "run_id": "r1",
        "ti": SimpleNamespace(
            dag_id="mimic_cxr_jpg",
            task_id="check_access",
            get_first_reschedule_date=lambda _: None,
            xcom_pull=lambda **_: None,
        ),
        "task_reschedule_count": 0,
    }
    return made, context


def fired(deferred: TaskDeferred) -> Any:
    """The event of a task's trigger, which has been in Airflow's database meanwhile."""
    path, kwargs = deferred.trigger.serialize()
    assert path == "physionet_airflow.triggers.OutageTrigger"
    trigger = OutageTrigger(**deserialize(json.loads(json.dumps(serialize(kwargs)))))

    async def first() -> TriggerEvent:
        return await anext(aiter(trigger.run()))

    return json.loads(json.dumps(asyncio.run(asyncio.wait_for(first(), 60)).payload))


@pytest.mark.parametrize("name", ["502", "503", "reset"])
def test_whoever_has_no_account_sees_that_an_outage_is_over(physionet: Lookalike, name: str) -> None:
    physionet.faults.set(OUTAGES[name])
    assert not outage.is_over(physionet.url, MIMIC_CXR_JPG, USER_AGENT)
    physionet.faults.clear()
    physionet.counters.reset()
    assert outage.is_over(physionet.url, MIMIC_CXR_JPG, USER_AGENT)
    assert physionet.counters.requests == 1


def test_a_page_for_everybody_is_an_outage() -> None:
    class Maintenance(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Maintenance) as url:
        assert not outage.is_over(url, MIMIC_CXR_JPG, USER_AGENT)


def test_a_host_that_is_not_there_is_an_outage() -> None:
    assert not outage.is_over(f"http://127.0.0.1:{stack.free_port()}", MIMIC_CXR_JPG, USER_AGENT)


@pytest.mark.parametrize("name", OUTAGES)
def test_an_outage_is_waited_for_in_the_triggerer(
    name: str, sensor: Any, physionet: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, context = sensor
    physionet.faults.set(OUTAGES[name])
    with api_server("healthy") as url, mail_server() as mails:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", url)
        monkeypatch.setenv("AIRFLOW_CONN_LAB", json.dumps(mails.connection()))
        monkeypatch.setenv(notify.VARIABLE, "smtp://lab?to=lab@example.org&on=waiting")
        with pytest.raises(TaskDeferred) as first:
            check.execute(context)
        assert mails.subjects() == ["mimic_cxr_jpg waits"]
        assert "It goes on by itself when that is over, and gives up after 12:00:00" in mails.text()

        # The account's own answer may be another than a stranger's: the task asks again, and is deferred for longer.
        event = {"last": "down", "until": time.time() + 60, "times": 3, "in_vain": False}
        with pytest.raises(TaskDeferred) as second:
            check.check_again(context, event)
        assert second.value.trigger.pause == 16 * first.value.trigger.pause
        assert second.value.trigger.until == event["until"]
        assert len(mails.mails) == 1

    physionet.faults.clear()
    physionet.counters.reset()
    event = fired(first.value)
    assert not event["in_vain"]
    assert {seen.method for seen in physionet.counters.seen} == {"HEAD"}
    assert physionet.counters.requests == 1
    way = check.check_again(context, event)
    assert way["source"] == "physionet"


def test_what_is_waited_for_in_vain_is_said_with_the_last_answer(
    sensor: Any, physionet: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, context = sensor
    physionet.faults.set(OUTAGES["502"])
    with api_server("healthy") as url:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", url)
        with pytest.raises(TaskDeferred) as deferred:
            check.execute(context)
    deferred.value.trigger.until = time.time()
    event = fired(deferred.value)
    with pytest.raises(
        AirflowSensorTimeout, match=r"in vain; nothing was fetched. The last answer was: PhysioNet answered 502"
    ):
        check.check_again(context, event)


def test_s3_is_waited_for_with_the_pause_alone(
    sensor: Any, physionet: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, context = sensor
    gone = json.loads(json.dumps({"conn_type": "aws", "login": "a", "password": "b", "extra": {
        "endpoint_url": f"http://127.0.0.1:{stack.free_port()}", "region_name": "us-east-1",
        "config_kwargs": {"retries": {"max_attempts": 1}},
    }}))  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(gone))
    with api_server("healthy") as url:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", url)
        with pytest.raises(TaskDeferred) as deferred:
            check.execute(context)
    assert fired(deferred.value)["in_vain"] is False
    assert physionet.counters.requests == 0


@pytest.mark.parametrize("triggerer", ["unhealthy", None, "no server"])
def test_without_a_triggerer_the_task_is_rescheduled(
    triggerer: str | None, sensor: Any, physionet: Lookalike, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, context = sensor
    physionet.faults.set(OUTAGES["502"])
    with api_server(triggerer) as url:
        monkeypatch.setenv(
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL",
            f"http://127.0.0.1:{stack.free_port()}" if triggerer == "no server" else url,
        )
        with pytest.raises(AirflowRescheduleException):
            check.execute(context)
