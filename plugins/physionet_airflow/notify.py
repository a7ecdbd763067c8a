"""Tell people by mail, chat or whatever Airflow has a notifier for: a run's end, a wait for PhysioNet, a question.

The environment variable ``PHYSIONET_NOTIFY``, read when a DAG is parsed, names whom to tell, as addresses apart by spaces::

    smtp://smtp_default?to=lab@example.org slack://slack_api_default?channel=%23mimic&on=failed,approval

    <kind>://<connection id>?<argument>=<value>&<argument>=<value>

    kind      ``smtp``, ``slack``, ``slackwebhook``, or the import path of any notifier class
    argument  one of the notifier's own, such as ``to``, ``channel``, ``from_email``; percent-encoded
    on        which events, of `EVENTS`; all where it is left out

What is told is put into the notifier's arguments for subject and text (`_TEXTS`), where the address does not give them; its
templates find it as ``physionet``: ``{{ physionet.subject }}``, ``.text``, ``.html``, ``.link``. Nothing here fails a run.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from html import escape
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import parse_qsl

from airflow.sdk import BaseNotifier

from physionet_airflow.urls import airflow_run_url, base_url, root_path, run_url
from physionet_mirror.errors import InputError
from physionet_mirror.words import duration

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

VARIABLE = "PHYSIONET_NOTIFY"
LIMIT_VARIABLE = "PHYSIONET_RUN_HOURS"

Event = Literal["finished", "failed", "waiting", "approval"]
EVENTS: tuple[Event, ...] = get_args(Event)
"""A run ended green; red, or after its time limit; waits for PhysioNet or S3; asks a person before it goes on."""

HOURS = 720
"""The default of ``PHYSIONET_RUN_HOURS``: the longest mirror by HTTP takes three weeks, an answer three days."""

NOTICE = "notice"
"""The XCom key under which a task leaves what is to be told of it when the run has ended."""

_KINDS = {
    "smtp": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
    "slack": "airflow.providers.slack.notifications.slack.SlackNotifier",
    "slackwebhook": "airflow.providers.slack.notifications.slack_webhook.SlackWebhookNotifier",
}
_TEXTS = {"subject": ("subject", "title"), "html": ("html_content",), "text": ("text", "message", "body", "summary")}
_ADDRESS = re.compile(r"([A-Za-z_][\w.]*)://([^?]*)(?:\?(.*))?")
_EXAMPLE = "smtp://smtp_default?to=lab@example.org"


@dataclass(frozen=True)
class Message:
    """What is told.

    Attributes:
        subject: One line.
        text: Plain text.
        link: The address of the run's page in Airflow, or empty where ``[api] base_url`` is not set.
    """

    subject: str
    text: str
    link: str = ""

    @property
    def html(self) -> str:
        """The text for a mail: its addresses are links."""
        found = re.sub(r"https?://[^\s<]+", lambda at: f'<a href="{at[0]}">{at[0]}</a>', escape(self.text))
        return f"<p>{found}</p>".replace("\n", "<br>\n")


@dataclass(frozen=True)
class Address:
    """One of ``PHYSIONET_NOTIFY``.

    Attributes:
        path: Import path of the notifier's class.
        conn_id: Of the connection that it uses; empty = the notifier's own default.
        arguments: Its other arguments.
        events: What it is told.
    """

    path: str
    conn_id: str
    arguments: Mapping[str, str]
    events: tuple[Event, ...] = EVENTS

    @classmethod
    def parse(cls, text: str) -> Address:
        """From the form that the module's docstring shows.

        Raises:
            InputError: It has another form, or names a kind, an event or a package that is not there.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise _wrong(f"{_shown(text)} is no address")
        kind, conn_id, query = found[1], found[2], found[3] or ""
        if kind not in _KINDS and "." not in kind:
            raise _wrong(f"{kind} is no kind of notifier; give {', '.join(_KINDS)}, or the import path of a class")
        arguments = dict(parse_qsl(query, keep_blank_values=True))
        on = arguments.pop("on", "")
        events = tuple(event for event in EVENTS if not on or event in on.split(","))
        if unknown := sorted(set(on.split(",")) - {"", *EVENTS}):
            raise _wrong(f"{unknown[0]} is no event; on takes {', '.join(EVENTS)}")
        path = _KINDS.get(kind, kind)
        if not _is_installed(path.rpartition(".")[0]):
            package = (
                f" (pip install apache-airflow-providers-{kind.removesuffix('webhook')})" if kind in _KINDS else ""
            )
            raise _wrong(f"the notifier {path} is not installed here{package}")
        return cls(path, conn_id, arguments, events)

    def notifier(self, message: Message) -> BaseNotifier:
        """The notifier, filled in."""
        module, _, name = self.path.rpartition(".")
        kind: type[BaseNotifier] = getattr(import_module(module), name)
        takes = inspect.signature(kind).parameters
        arguments: dict[str, Any] = dict(self.arguments)
        if self.conn_id and (of_connection := [name for name in takes if name.endswith("conn_id")]):
            arguments.setdefault(of_connection[0], self.conn_id)
        for part, names in _TEXTS.items():
            for name in takes.keys() & set(names):
                # As a template, where it is one, so that nothing in the text is taken for a template itself.
                is_template = name in kind.template_fields
                arguments.setdefault(name, f"{{{{ physionet.{part} }}}}" if is_template else getattr(message, part))
        return kind(**arguments)


def _wrong(what: str) -> InputError:
    return InputError(
        f"The environment variable {VARIABLE} cannot be used: {what}. Nothing was started. Correct it, or take it away; it has "
        f"the form {_EXAMPLE} (docs/monitoring.md)."
    )


def _shown(text: str) -> str:
    """An address without what may be a secret."""
    return repr(text.partition("?")[0][:60])


@cache
def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def addresses(event: Event) -> list[Address]:
    """Who wants to know of this.

    Raises:
        InputError: ``PHYSIONET_NOTIFY`` cannot be read.
    """
    found = [Address.parse(text) for text in os.environ.get(VARIABLE, "").split()]
    return [address for address in found if event in address.events]


def notifiers(event: Event, said: str = "") -> list[BaseNotifier]:
    """The notifier of an event, as Airflow takes it for callbacks; none where nobody wants to know.

    Args:
        event: What has happened.
        said: What to tell of it, plain or Markdown; of a run that has ended, its tasks have left notices.

    Raises:
        InputError: ``PHYSIONET_NOTIFY`` cannot be read.
    """
    return [RunNotifier(event, said)] if addresses(event) else []


class RunNotifier(BaseNotifier):
    """Tells everybody in ``PHYSIONET_NOTIFY`` who wants to know; logs whom it could not reach, and never raises.

    Args:
        event: What has happened.
        said: As `notifiers` takes it.
    """

    def __init__(self, event: Event, said: str = "") -> None:
        super().__init__()
        self.event, self.said = event, said

    def notify(self, context: Context) -> None:
        """Tell them."""
        try:
            message = _message(self.event, context, _plain(self.said))
            told = addresses(self.event)
        except Exception:  # whatever it is, the run is worth more
            log.warning("Nobody could be told that the run is %s.", self.event, exc_info=True)
            return
        for address in told:
            try:
                with_message: Any = {**context, "physionet": message}
                address.notifier(message)(with_message)
            except Exception as error:  # noqa: BLE001  a notifier raises what it likes, with secrets in it perhaps
                log.warning(
                    "%s (connection %s) could not tell that the run is %s: %s. The run does not depend on it. Check the "
                    "connection and %s.",
                    address.path.rpartition(".")[2],
                    address.conn_id or "by default",
                    self.event,
                    type(error).__name__,
                    VARIABLE,
                )
            else:
                log.info("%s was told: %s", address.path.rpartition(".")[2], message.subject)


def leave_notice(context: Context, text: str) -> None:
    """Leave what is to be told of a task when its run has ended; does nothing where nobody is told.

    Args:
        context: The task's.
        text: Sentences for people; no secrets.
    """
    if os.environ.get(VARIABLE):
        context["ti"].xcom_push(key=NOTICE, value=text)


def run_limit() -> timedelta:
    """``PHYSIONET_RUN_HOURS``: a run that takes longer is ended, and people are told.

    Raises:
        InputError: It is no number above zero.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(HOURS)
    if not re.fullmatch(r"\d{1,5}(\.\d{1,6})?", text) or not float(text):
        raise InputError(f"The environment variable {LIMIT_VARIABLE} is {text[:40]!r}; it must be hours above zero.")
    return timedelta(hours=float(text))


# -- what is said ------------------------------------------------------------------------------------------------------

_SUBJECTS: Mapping[Event, str] = {
    "finished": "finished",
    "failed": "failed",
    "waiting": "waits",
    "approval": "asks for your approval",
}


def _message(event: Event, context: Context, said: str) -> Message:
    dag: Any = context["dag"]
    dag_id, run_id = dag.dag_id, context["run_id"]
    base = base_url()
    lines = [said] if said else _of_the_run(event, context)
    link = ""
    if base:
        link = base + airflow_run_url(dag_id, run_id)
        lines.append(f"The run in Airflow: {link}")
        if event == "approval":
            lines.append(f"Answer here: {base}{root_path()}required_actions")
        elif any(task.task_type == "VerifyOperator" for task in dag.tasks):
            lines.append(f"Its report: {base}{run_url(dag_id, run_id, 'report')}")
    name = dag.dag_display_name or dag_id
    return Message(f"{name} {_SUBJECTS[event]}", "\n".join([f"Run {run_id} of {dag_id}.", *lines]), link)


def _of_the_run(event: Event, context: Context) -> list[str]:
    """Sentences about a run that has ended."""
    dag_run: Any = context.get("dag_run")
    began = getattr(dag_run, "start_date", None)
    took = f" after {duration((datetime.now(UTC) - began).total_seconds())}" if began else ""
    if event == "failed" and context.get("reason") == "timed_out":
        took = f" after its limit of {duration(run_limit().total_seconds())} ({LIMIT_VARIABLE})"
    lines = [f"It {'ended well' if event == 'finished' else 'failed'}{took}."]
    dag: Any = context["dag"]
    tasks = [task.task_id for task in dag.topological_sort()]
    ti = context.get("ti")
    left = ti.xcom_pull(task_ids=tasks, key=NOTICE, map_indexes=-1) if ti is not None else None
    left = [str(text) for text in left or [] if text]
    lines += left
    if event == "failed" and not left:
        lines.append("What was stored stays. Trigger the run again when the cause is put right: it goes on from there.")
    return lines


def _plain(markdown: str) -> str:
    """The Markdown of an approval's page as plain text: rows of a table become ``name: value``."""
    lines = [line for line in markdown.splitlines() if not re.fullmatch(r"[|\s:-]*", line)]
    rows = [re.sub(r"^\|\s*(.*?)\s*\|\s*(.*?)\s*\|$", r"\1: \2", line) for line in lines]
    return re.sub(r"\*\*|`", "", "\n".join(rows))
