"""The base URL from a connection's fields."""

from __future__ import annotations

from contextlib import closing

import pytest
from airflow.sdk import Connection

from physionet_airflow.hook import PhysioNetHook


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({}, "https://physionet.org"),
        ({"host": "physionet.org", "port": 443}, "https://physionet.org"),
        ({"host": "https://physionet.org/", "port": 443}, "https://physionet.org"),
        ({"host": "https://mirror.example.org", "port": 8443}, "https://mirror.example.org:8443"),
        ({"host": "127.0.0.1", "port": 80}, "http://127.0.0.1"),
        ({"host": "http://127.0.0.1:8000", "port": 8000}, "http://127.0.0.1:8000"),
        ({"host": "localhost", "schema": "https", "port": 8000}, "https://localhost:8000"),
    ],
)
def test_the_address_of_a_connection(monkeypatch, fields, url):
    connection = Connection(conn_id="p", conn_type="physionet", login="reader", password="a password", **fields)
    monkeypatch.setattr(PhysioNetHook, "get_connection", lambda *_: connection)
    with closing(PhysioNetHook("p").source()) as source:
        assert source.base_url == url
