"""The whole way in a browser, with a real Airflow: plan a cohort, trigger it, watch it, read its report, repeat it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from demo import stack
from tests.browser.conftest import log_in

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

BUCKET = "browser-test"
RUN_TIME = 400_000
"""Time limit for a run of 25 images in milliseconds, on a machine that has other work too."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("way")
    draw = [
        sys.executable,
        "-m",
        "demo.synthetic",
        "--root",
        folder / "physionet",
        "--images",
        "60",
        "--long-side",
        "256",
    ]
    subprocess.run(draw, cwd=stack.ROOT, env=stack.plain_environment(), check=True, capture_output=True)
    with stack.s3_server(folder / "s3") as s3, stack.physionet(folder / "physionet") as source:
        s3.make_bucket(BUCKET)
        extra = {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,stranger:",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "MIMIC_CXR_BUCKET": BUCKET,
        }
        connections = stack.connections(s3, source)
        with stack.airflow(folder / "airflow", connections=connections, extra_env=extra, timeout=300) as running:
            run = running.api.trigger("mimic_cxr_jpg", {"bucket": BUCKET, "dry_run": True}, run_id="dry")
            assert running.api.wait("mimic_cxr_jpg", run, timeout=400) == "success"
            yield running


def trigger_25(page, airflow):
    """Trigger a run of 25 images, starting from Airflow's own navigation, and end on its live page."""
    page.goto(f"{airflow.url}/plugin/physionet")
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="Plan a run").first.click()
    frame.get_by_label("Sample size").fill("25")
    frame.locator("#r-images", has_text="25").wait_for()
    frame.get_by_role("button", name="Trigger with these params").click()
    frame.get_by_text("25 images,").last.wait_for()
    frame.get_by_role("button", name="Trigger", exact=True).click()
    frame.locator("#verdict").wait_for()
    return frame


def test_plan_trigger_watch_and_read(airflow, window, shoot):
    with window() as page:
        log_in(page, airflow.url, "admin", airflow.password)
        frame = trigger_25(page, airflow)
        frame.locator("#grid a").first.wait_for(timeout=RUN_TIME)
        frame.get_by_role("heading", name="All 25 selected images are in the bucket").wait_for(timeout=RUN_TIME)
        assert frame.locator("[data-field=share]").inner_text() == "100 %"
        assert set(frame.locator("#grid a").evaluate_all("all => all.map(a => a.dataset.state)")) == {"done"}
        shoot(page, "run-live")
        frame.get_by_role("link", name="The report").click()
        report = frame.frame_locator("iframe.report")
        report.get_by_text("All 25 selected images are in the bucket and verified.").wait_for()
        shoot(page, "run-report")


def test_a_second_run_skips_what_is_there(airflow, window, shoot):
    with window() as page:
        log_in(page, airflow.url, "admin", airflow.password)
        frame = trigger_25(page, airflow)
        frame.get_by_role("heading", name="All 25 selected images are in the bucket").wait_for(timeout=RUN_TIME)
        assert set(frame.locator("#grid a").evaluate_all("all => all.map(a => a.dataset.state)")) == {"there"}
        assert frame.locator("[data-field=stored]").inner_text() == "0"
        cell = frame.locator("#grid a").first
        cell.click()
        page.wait_for_url(re.compile(r"/tasks/mirror_shard\.missing/mapped/0"))
        page.goto(page.url.partition("/tasks/")[0])
        page.get_by_text("mirror_shard").first.wait_for()
        for button in page.get_by_role("button", name=re.compile("expand all", re.IGNORECASE)).all()[:1]:
            button.click()
        page.wait_for_timeout(2000)
        shoot(page, "grid")


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_the_connection_form_has_the_accounts_fields(airflow, window, shoot, theme, width):
    with window(theme, width) as page:
        log_in(page, airflow.url, "admin", airflow.password)
        page.goto(f"{airflow.url}/connections")
        page.get_by_role("button", name="Add Connection").click()
        page.get_by_role("combobox").first.click()
        page.keyboard.type("PhysioNet")
        page.keyboard.press("Enter")
        page.get_by_text("PhysioNet user name").wait_for()
        shoot(page, "connection-form" if theme == "light" else f"connection-form-{theme}-{width}")


@pytest.mark.parametrize(("word", "title"), [("", "Successful"), ("not the password", "Failed")])
def test_the_test_button_tells_a_right_password_from_a_wrong_one(airflow, window, shoot, word, title):
    account = json.loads(airflow.env["AIRFLOW_CONN_PHYSIONET_DEFAULT"])
    body = {
        "connection_id": f"physionet_{title.lower()}",
        "conn_type": "physionet",
        "host": account["host"],
        "port": urlsplit(account["host"]).port,
        "login": account["login"],
        "password": word or account["password"],
    }
    airflow.api.call("POST", "connections", body)
    with window() as page:
        log_in(page, airflow.url, "admin", airflow.password)
        page.goto(f"{airflow.url}/connections")
        row = page.get_by_role("row").filter(has_text=body["connection_id"])
        row.get_by_role("button", name="Test Connection").click()
        page.get_by_text(f"Test Connection {title}").wait_for()
        shoot(page, f"connection-test-{title.lower()}")
        assert account["password"] not in page.content()
        if word:
            page.get_by_text("Wrong user name or password").first.wait_for()


def test_a_stranger_sees_nothing(airflow, window):
    password = json.loads((airflow.services["api-server"].log.parent / "passwords.json").read_text())["stranger"]
    with window() as page:
        log_in(page, airflow.url, "stranger", password)
        for path in ("/physionet/", "/physionet/plan", "/physionet/dags/mimic_cxr_jpg/runs/dry"):
            answer = page.goto(airflow.url + path)
            assert answer.status == 403
            assert BUCKET not in page.content()
