"""SQLite as the database of a whole Airflow: several processes write, and each waits for the lock.

In SQLite, a transaction that reads before it writes cannot wait: if another one has written meanwhile, it fails at once
with "database is locked", whatever the time-out. Python begins a transaction at the first write, so that is rare; but
Airflow creates backfills within a SAVEPOINT, which begins one with a read. Here such a transaction takes the write lock
first.

Airflow's API server may also wait for itself: its audit log commits on the event loop (3.3), where it waits for another
request that has written and needs the event loop to commit. Neither goes on before the time-out. Here the entry is left
to the request's own transaction, which commits in a thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

PATIENCE = 60.0
"""Seconds that a writer waits for another one; SQLite's five are too few on a busy machine."""


class _Cursor(sqlite3.Cursor):
    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("SAVEPOINT") and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")
        return super().execute(sql, *parameters)


class _Connection(sqlite3.Connection):
    def cursor(self, *_: Any) -> sqlite3.Cursor:
        return super().cursor(_Cursor)


CONNECT_ARGS = {"timeout": PATIENCE, "factory": _Connection}
"""For Airflow's ``[database] sql_alchemy_connect_args``."""


class _Session(Session):
    def commit(self) -> None:
        if not (self.new and _on_event_loop() and all(type(row).__name__ == "Log" for row in self)):
            super().commit()


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


SESSION_MAKER = partial(sessionmaker, class_=_Session, autocommit=False, autoflush=False, expire_on_commit=False)
"""For Airflow's ``[database] sql_alchemy_session_maker``; the arguments are those of Airflow's own."""


def prepare(file: Path) -> None:
    """Let readers of this database work at the same time as a writer; the setting is stored in the file."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
