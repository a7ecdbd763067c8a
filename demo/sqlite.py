"""SQLite as the database of a whole Airflow: several processes write, and each waits for the lock.

In SQLite, a transaction that reads before it writes cannot wait: if another one has written meanwhile, it fails at once
with "database is locked", whatever the time-out. Python begins a transaction at the first write, so that is rare; but
Airflow creates backfills within a SAVEPOINT, which begins one with a read. Here such a transaction takes the write lock
first.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

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


def prepare(file: Path) -> None:
    """Let readers of this database work at the same time as a writer; the setting is stored in the file."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
