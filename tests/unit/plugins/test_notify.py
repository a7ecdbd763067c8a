"""Whom PHYSIONET_NOTIFY names, and what its notifiers are given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from airflow.sdk import DAG, BaseNotifier, BaseOperator

from physionet_airflow import dag, notify
from physionet_airflow.notify import Address, Message
from physionet_mirror.errors import InputError
from tests.smtp import MailServer, mail_server


class Kept(BaseNotifier):
    """A notifier of somebody's own."""

    template_fields = ("text",)
    seen: ClassVar[list[Any]] = []

    def __init__(self, text: str, title: str, pager_conn_id: str = "none", room: str = "") -> None:
        super().__init__()
        self.text, self.title, self.conn, self.room = text, title, pager_conn_id, room

    def notify(self, _: Any) -> None:
        Kept.seen.append((self.conn, self.room, self.title, self.text))


OWN = f"{__name__}.Kept"


def test_any_notifier_is_given_its_connection_subject_and_text() -> None:
    address = Address.parse(f"{OWN}://pager_1?room=%23icu&on=failed,approval")
    assert address.events == ("failed", "approval")
    Kept.seen.clear()
    message = Message("A subject", "No template: {{ ti }} {% raw %}")
    address.notifier(message)({"physionet": message})  # type: ignore[arg-type]
    assert Kept.seen == [("pager_1", "#icu", "A subject", "No template: {{ ti }} {% raw %}")]


def test_a_template_of_ones_own_finds_the_message() -> None:
    address = Address.parse(f"{OWN}://p?text=%7B%7B%20physionet.subject%20%7D%7D%21")
    Kept.seen.clear()
    message = Message("A subject", "text")
    address.notifier(message)({"physionet": message})  # type: ignore[arg-type]
    assert Kept.seen[0][-1] == "A subject!"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("lab@example.org", "'lab@example.org' is no address"),
        ("pigeon://roof", "pigeon is no kind of notifier; give smtp, slack, slackwebhook, or"),
        ("smtp://x?to=a@b.org&on=ended", "ended is no event; on takes finished, failed, waiting, approval"),
        ("no_such_package.pager.Pager://x", "no_such_package.pager.Pager is not installed here"),
        ("https//hooks.example.org?token=s3cret", "'https//hooks.example.org' is no address"),
    ],
)
def test_what_cannot_be_read_is_said_and_shows_no_argument(
    given: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(notify.VARIABLE, f"smtp://ok?to=a@b.org {given}")
    with pytest.raises(InputError) as raised:
        dag.defaults()
    assert why in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_mail_shows_the_text_as_it_is_and_its_addresses_as_links() -> None:
    html = Message("s", "a < b & {{ c }}\nSee https://airflow.example.org/dags/x?a=1").html
    assert html == (
        "<p>a &lt; b &amp; {{ c }}<br>\n"
        'See <a href="https://airflow.example.org/dags/x?a=1">https://airflow.example.org/dags/x?a=1</a></p>'
    )


class Ti:
    """What the callbacks of a DAG ask of its last task."""

    def __init__(self, left: list[str | None]) -> None:
        self.left = left

    def xcom_pull(self, *, task_ids: list[str], key: str, map_indexes: int) -> list[str | None]:
        assert (key, map_indexes, len(task_ids)) == ("notice", -1, 2)
        return self.left


class VerifyOperator(BaseOperator):
    pass


def ended(left: list[str | None], reason: str) -> Any:
    with DAG("mirror", dag_display_name="My mirror") as made:
        BaseOperator(task_id="check") >> VerifyOperator(task_id="verify")
    began = datetime.now(UTC) - timedelta(minutes=10)
    return {
        "dag": made, "run_id": "r 1", "reason": reason, "ti": Ti(left), "dag_run": SimpleNamespace(start_date=began)
    }  # fmt: skip


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    with mail_server() as server:
        monkeypatch.setenv("AIRFLOW_CONN_LAB", json.dumps(server.connection()))
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://lab.example.org/below/")
        monkeypatch.setenv(notify.VARIABLE, "smtp://not_there?to=c@d.org smtp://lab?to=a@b.org")
        yield server


def test_a_mail_of_the_end_has_figures_and_links(mails: MailServer, caplog: pytest.LogCaptureFixture) -> None:
    (tell,) = notify.notifiers("finished")
    tell(ended([None, "12 of 12 selected images verified."], "success"))
    assert mails.subjects() == ["My mirror finished"]
    assert mails.mails[0]["To"] == "a@b.org"
    assert "It ended well after 10 min" in mails.text()
    assert "12 of 12 selected images verified." in mails.text()
    assert '<a href="https://lab.example.org/below/physionet/dags/mirror/runs/r%201/report">' in mails.text()
    assert "SmtpNotifier (connection not_there) could not tell" in caplog.text


def test_a_mail_of_a_failure_says_what_its_tasks_said(mails: MailServer) -> None:
    (tell,) = notify.notifiers("failed")
    tell(ended(["The bucket x does not exist. Make it.", "The task check failed."], "task_failure"))
    assert mails.subjects() == ["My mirror failed"]
    assert "It failed after 10 min" in mails.text()
    assert "The bucket x does not exist. Make it.<br>" in mails.text()
    assert "What was stored stays" not in mails.text()


def test_a_mail_of_a_run_that_hangs_names_its_limit(mails: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.LIMIT_VARIABLE, "36")
    (tell,) = notify.notifiers("failed")
    tell(ended([], "timed_out"))
    assert "It failed after its limit of 36 h 0 min (PHYSIONET_RUN_HOURS)." in mails.text()
    assert "Trigger the run again" in mails.text()


def test_a_dag_has_callbacks_for_what_somebody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.VARIABLE, raising=False)
    assert set(dag.defaults()) == {"default_args", "dagrun_timeout"}
    monkeypatch.setenv(notify.VARIABLE, "smtp://x?to=a@b.org&on=failed")
    assert set(dag.defaults()) == {"default_args", "dagrun_timeout", "on_failure_callback"}
    monkeypatch.setenv(notify.VARIABLE, "smtp://x?to=a@b.org&on=failed  smtp://y?to=c@d.org")
    assert set(dag.defaults()) >= {"on_success_callback", "on_failure_callback"}


def test_how_long_a_run_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.LIMIT_VARIABLE, raising=False)
    assert notify.run_limit() == timedelta(days=30)
    monkeypatch.setenv(notify.LIMIT_VARIABLE, "36.5")
    assert notify.run_limit() == timedelta(hours=36.5)
    for wrong in ("0", "-1", "soon", "nan", "1e9", "0.0"):
        monkeypatch.setenv(notify.LIMIT_VARIABLE, wrong)
        with pytest.raises(InputError, match="PHYSIONET_RUN_HOURS"):
            notify.run_limit()
