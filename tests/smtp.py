"""A real SMTP server on the loopback, which keeps what it is sent."""

from __future__ import annotations

import email
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from demo import stack


@dataclass
class MailServer:
    """Where it listens, and what came; ``accepts`` is what its users' mailboxes say."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)

    def connection(self) -> dict[str, object]:
        """It as an Airflow connection of type ``smtp``; a limit of 0 makes provider 3.0 send nothing at all."""
        extra = {"from_email": "airflow@example.org", "disable_ssl": True, "disable_tls": True, "retry_limit": 1}
        return {"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra}

    def subjects(self) -> list[str]:
        return [mail["Subject"] for mail in self.mails]

    def text(self, number: int = -1) -> str:
        """The text of a mail, whatever it is encoded as."""
        return "".join(
            part.get_content() for part in self.mails[number].walk() if part.get_content_maintype() == "text"
        )

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802  aiosmtpd's name
        assert isinstance(envelope.content, bytes)
        self.mails.append(email.message_from_bytes(envelope.content, policy=default))
        return "250 Kept"


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """A mail server that takes everything."""
    server = MailServer(stack.free_port())
    controller = Controller(server, hostname="127.0.0.1", port=server.port)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()
