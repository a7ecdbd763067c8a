"""The connection to PhysioNet."""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import closing
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from physionet_airflow.compat import AirflowNotFoundException
from physionet_mirror.errors import InputError, MirrorError

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from physionet_mirror.source.physionet import PhysioNet

PHYSIONET = "https://physionet.org"
_PORTS = {"https": 443, "http": 80}

CONN_ID = os.environ.get("PHYSIONET_CONN_ID") or "physionet_default"
"""The connection of the PhysioNet account."""

_HOW = (
    f"Set it under Admin > Connections, or as the environment variable AIRFLOW_CONN_{CONN_ID.upper()}="
    '\'{"conn_type": "http", "host": "https://physionet.org", "login": "<user name>", "password": "<password>"}\'.'
)


class PhysioNetHook(BaseHook):
    """A PhysioNet account, from a connection of type ``http`` (or ``physionet``).

    The connection's fields:

    - host: ``https://physionet.org`` when empty. Plain ``http://`` only to loopback, or with extra ``allow_http``.
    - login, password: the credentialed PhysioNet account.
    - extra (all optional): ``allow_http`` (bool), ``user_agent`` (must begin with ``Wget/`` or ``libwfdb/``: PhysioNet
      reads a password from no other agent), ``connect_timeout`` and ``read_timeout`` (seconds), ``dataset`` (the one
      that the form's Test button asks for, ``mimic-cxr-jpg/2.1.0`` when empty).

    Args:
        physionet_conn_id: The connection's id.
    """

    conn_name_attr = "physionet_conn_id"
    default_conn_name = CONN_ID
    conn_type = "physionet"
    hook_name = "PhysioNet"

    def __init__(self, physionet_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.physionet_conn_id = physionet_conn_id

    def source(self, connections: int = 1) -> PhysioNet:
        """The engine's source for PhysioNet, with this account; makes no request.

        Args:
            connections: The most connections that it may hold at once.

        Raises:
            InputError: There is no such connection, or it has no login or password, or an extra that cannot be read.
        """
        from physionet_mirror.source.physionet import PhysioNet

        connection = self._connection()
        login, password = connection.login or "", connection.password or ""
        if not login or not password:
            raise InputError(
                f"The connection {self.physionet_conn_id} has no {'password' if login else 'login'}. Nothing was "
                f"asked of PhysioNet. {_HOW} The account is the one you use at {PHYSIONET}/login/."
            )
        # Airflow masks the password by itself, but not the form in which it goes over the wire.
        mask_secret(password)
        mask_secret(b64encode(f"{login}:{password}".encode()).decode())
        return PhysioNet(_base_url(connection), login, password, connections=connections, **self._extra(connection))

    def test_connection(self) -> tuple[bool, str]:
        """The answer to the form's Test button: whether this account may read the dataset, and if not, why."""
        from physionet_mirror.dataset import DATASETS, MIMIC_CXR_JPG

        try:
            connection = self._connection()
            name = str(connection.extra_dejson.get("dataset") or MIMIC_CXR_JPG.name)
            if name not in DATASETS:
                return False, f"There is no dataset {name[:60]!r}; this project knows {', '.join(DATASETS)}."
            with closing(self.source()) as source:
                source.check_access(DATASETS[name])
        except MirrorError as error:
            return False, f"{error.summary}. {error}"
        return True, f"PhysioNet lets {connection.login} read {name}."

    def _connection(self) -> Connection:
        try:
            return self.get_connection(self.physionet_conn_id)
        except AirflowNotFoundException:
            raise InputError(
                f"There is no connection {self.physionet_conn_id}. Nothing was asked of PhysioNet. {_HOW}"
            ) from None

    def _extra(self, connection: Connection) -> dict[str, Any]:
        extra = connection.extra_dejson
        found: dict[str, Any] = {}
        try:
            if agent := extra.get("user_agent"):
                found["user_agent"] = str(agent)
            if "allow_http" in extra:
                found["allow_http"] = str(extra["allow_http"]).lower() in {"true", "1", "yes"}
            for name in ("connect_timeout", "read_timeout"):
                if extra.get(name) not in (None, ""):
                    found[name] = float(extra[name])
                    if found[name] <= 0:
                        raise ValueError
        except (TypeError, ValueError):
            raise InputError(
                f"The extra of the connection {self.physionet_conn_id} has a {name} that is no number of seconds. "
                "Nothing was asked of PhysioNet. Correct it under Admin > Connections."
            ) from None
        return found


def _base_url(connection: Connection) -> str:
    """``https://physionet.org`` unless the connection says otherwise."""
    from physionet_mirror.worker_settings import is_loopback

    host = (connection.host or PHYSIONET).strip().rstrip("/")
    if "://" not in host:
        scheme = connection.schema if connection.schema in {"http", "https"} else None
        host = f"{scheme or ('http' if is_loopback(host) else 'https')}://{host}"
    scheme, _, name = host.partition("://")
    if connection.port and connection.port != _PORTS.get(scheme) and ":" not in name:
        host += f":{connection.port}"
    return host
