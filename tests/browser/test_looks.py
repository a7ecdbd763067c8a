"""Every view, light and dark, wide and narrow, over a run of 400 shards: layout, accessibility and policy."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import log_in
from tests.page_server import BUCKET, DONE, LIVE, SHARDS, TABLES, go_on, page_server

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

VIEWS = {
    "overview": "/physionet/",
    "plan": "/physionet/plan?sample_size=5000&labels=Edema&labels=Pneumonia&views=AP&views=PA",
    "project": f"/physionet/plan/project?project={TABLES}&include=icu/**&include=*.txt",
    "live": f"/physionet/dags/mimic_cxr_jpg/runs/{LIVE.replace('+', '%2B')}",
    "report": f"/physionet/dags/mimic_cxr_jpg/runs/{DONE.replace('+', '%2B')}/report",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with page_server(tmp_path_factory.mktemp("looks"), spoilt=False) as server:
        yield server


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_fits(server, window, shoot, theme, width):
    with window(theme, width) as page:
        log_in(page, server.url, "admin", server.password("admin"))
        for name, path in VIEWS.items():
            go_on(server.s3)
            page.goto(server.url + path)
            page.locator("main").wait_for()
            page.wait_for_load_state("networkidle") if name != "live" else page.wait_for_timeout(1500)
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if name != "report":
                shoot(page, f"page-{name}-{theme}-{width}", full=True)


def test_the_page_follows_airflows_theme(server, window, shoot):
    with window("light") as page:
        log_in(page, server.url, "admin", server.password("admin"))
        run = LIVE.replace("+", "%2B")
        go_on(server.s3)
        page.goto(f"{server.url}/plugin/physionet/physionet/dags/mimic_cxr_jpg/runs/{run}")
        frame = page.frame_locator("iframe")
        frame.locator("#grid").wait_for()
        assert frame.locator("html").get_attribute("data-theme") == "light"
        page.evaluate("document.documentElement.classList.replace('light', 'dark')")
        frame.locator("html[data-theme=dark]").wait_for()
        page.evaluate("document.documentElement.classList.replace('dark', 'light')")
        page.wait_for_timeout(500)
        shoot(page, "page-tab-light-1280")


def test_400_shards_take_one_tab_stop_and_the_arrow_keys(server, window):
    with window() as page:
        log_in(page, server.url, "viewer", server.password("viewer"))
        page.goto(server.url + VIEWS["live"])
        cells = page.locator("#grid a")
        assert cells.count() == SHARDS
        assert page.locator("#grid a[tabindex='0']").count() == 1
        cells.first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert "complete before" in focused
        page.keyboard.press("End")
        assert "waiting" in page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_every_view_has_landmarks_a_heading_and_named_controls(server, window):
    with window() as page:
        log_in(page, server.url, "viewer", server.password("viewer"))
        for path in VIEWS.values():
            page.goto(server.url + path)
            assert page.get_by_role("main").count() == 1
            assert page.get_by_role("navigation").count() == 1
            assert page.get_by_role("heading", level=1).count() == 1
            assert page.locator("html[lang=en]").count() == 1
            nameless = page.evaluate(
                """[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a[href]')]
                .filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim()))
                .map(e => e.outerHTML)"""
            )
            assert [html for html in nameless if "summary" not in html] == []


def test_the_estimate_follows_the_form_and_is_said_aloud(server, window):
    with window() as page:
        log_in(page, server.url, "viewer", server.password("viewer"))
        page.goto(f"{server.url}/physionet/plan")
        page.get_by_label("Sample size").fill("25")
        page.locator("#r-images", has_text="25").wait_for()
        page.get_by_label("Pneumonia", exact=True).check()
        page.locator("#spoken", has_text="25 images").wait_for(state="attached")
        page.get_by_label("Select", exact=True).select_option("all")
        expect(page.locator("#r-images")).to_have_text(re.compile(r"^(\d,\d|[5-9]\d)\d\d"))
        page.get_by_label("Bucket").fill("No Bucket")
        page.locator(".field[data-name=bucket] .error", has_text="is no S3 bucket name").wait_for()
        assert page.get_by_label("Bucket").get_attribute("aria-invalid") == "true"


def test_any_project_is_planned_as_it_is_typed_and_triggered_as_its_own_dag(server, window):
    with window() as page:
        log_in(page, server.url, "viewer", server.password("viewer"))
        page.goto(f"{server.url}/physionet/plan?bucket={BUCKET}")
        page.get_by_role("link", name="Any project").click()
        page.get_by_text("Name a project first").first.wait_for()
        page.get_by_label("Project", exact=True).fill(TABLES)
        page.locator("#r-images", has_text="41").wait_for()
        page.get_by_label("Include").fill("icu/*\n*.txt")
        page.locator("#spoken", has_text="19 files, 4.91 GB to fetch").wait_for(state="attached")
        page.get_by_label("Include").fill("icuu/*")
        page.locator(".field[data-name=include] .error", has_text="no file of this project matches 'icuu/*'").wait_for()
        page.get_by_label("Include").fill("")
        page.get_by_role("button", name="Trigger with these params").click()
        page.get_by_role("heading", name="Trigger physionet_project with these params").wait_for()


def test_a_viewer_may_plan_but_airflow_refuses_the_trigger(server, window):
    with window() as page:
        log_in(page, server.url, "viewer", server.password("viewer"))
        page.goto(f"{server.url}/physionet/plan?bucket={BUCKET}&sample_size=25")
        page.get_by_role("button", name="Trigger with these params").click()
        refusals = []
        page.on("response", lambda answer: refusals.append(answer.status) if "/api/v2/" in answer.url else None)
        page.get_by_role("button", name="Trigger", exact=True).click()
        page.locator("#trigger-error", has_text="may not trigger this DAG").wait_for()
        assert set(refusals) == {403}


def test_airflows_trigger_form_leads_to_the_plan(server, window, shoot):
    with window() as page:
        log_in(page, server.url, "admin", server.password("admin"))
        page.goto(f"{server.url}/dags/mimic_cxr_jpg")
        page.get_by_test_id("trigger-dag-button").first.click()
        page.get_by_role("button", name="Which images").click()
        link = page.get_by_role("link", name="See first who is in it and what it takes")
        link.wait_for()
        page.wait_for_timeout(1000)
        shoot(page, "trigger-form")
        page.goto(f"{server.url}/{link.get_attribute('href').lstrip('/')}")
        page.frame_locator("iframe").get_by_role("heading", name="Plan a run").wait_for()
