"""Set-up of the compose stack. Each step may run again at every start: it changes only what is not as it should be.

    python setup.py secrets          make the keys and passwords that are not there yet
    python setup.py airflow          migrate the database, make the administrator, pools, variables, connections
    python setup.py demo             point the two connections at the demo's services
    python setup.py admin-password   give the administrator a new password and print it

Keys and passwords are files on volumes, one volume for each circle of containers that may read them; none is in an
environment variable, a command line or the image.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

HERE = Path(__file__).parent
SECRETS = Path(os.environ.get("MIRROR_SECRETS", "/opt/airflow/secrets"))
ADMIN = "admin"
DEMO_USER = "demo-reader"
DEMO_MARK = "Made by the demo profile; replace it with your own."


class SetupError(Exception):
    """What a person must decide; its text is shown without a traceback."""


# -- keys and passwords ------------------------------------------------------------------------------------------------


def make_secrets() -> None:
    """Make what is missing; what is there stays, or nothing that was encrypted or stored could be read again."""
    database = keep("database/password", secrets.token_hex(24))
    redis = keep("queue/redis_password", secrets.token_hex(24))
    keep("core/fernet_key", urlsafe_b64encode(secrets.token_bytes(32)).decode())
    keep("core/jwt_secret", secrets.token_hex(48))
    keep("core/database_url", f"postgresql+psycopg2://airflow:{database}@postgres/airflow")
    keep("queue/api_secret_key", secrets.token_hex(32))
    keep("queue/broker_url", f"redis://:{redis}@redis:6379/0")
    keep("queue/result_backend", f"redis://:{redis}@redis:6379/1")
    # Redis gives up root before it reads its configuration, and Grafana never has it: these two circles are closed by
    # who mounts the volume, not by the mode of the file.
    keep("queue/redis.conf", f"requirepass {redis}\nappendonly yes\ndir /data\n", mode=0o444)
    keep("monitoring/grafana_password", secrets.token_urlsafe(15), mode=0o444)
    keep("demo/physionet_password", secrets.token_urlsafe(12))
    keep("demo/s3_access_key", secrets.token_hex(10))
    keep("demo/s3_secret_key", secrets.token_hex(20))
    for circle in ("queue", "monitoring"):
        (SECRETS / circle).chmod(0o755)


def keep(name: str, value: str, mode: int = 0o400) -> str:
    """The content of a secret file, which is written first if there is none."""
    file = SECRETS / name
    if file.exists():
        return file.read_text()
    file.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not there: a start that is interrupted must not leave half a key.
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(value)
    draft.chmod(mode)
    draft.rename(file)
    print(f"made {name}")
    return value


# -- Airflow -----------------------------------------------------------------------------------------------------------


def set_up_airflow() -> None:
    """Database, administrator, pools, variables, and the connections that .env describes."""
    airflow("db", "migrate")
    make_administrator()
    airflow("pools", "import", str(HERE / "pools.json"))
    airflow("variables", "import", str(HERE / "variables.json"))
    if connections := connections_from(os.environ):
        store_connections(connections)


def make_administrator() -> None:
    """The first time, make the administrator and print the generated password; it is kept nowhere but as a hash."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        if builder.sm.find_user(ADMIN):
            return
    password = secrets.token_urlsafe(15)
    who = {"username": ADMIN, "firstname": "Airflow", "lastname": "Administrator", "email": "admin@localhost"}
    airflow("users", "create", "--role", "Admin", "--password", password, *(f"--{k}={v}" for k, v in who.items()))
    show_password(password)


def reset_administrator() -> None:
    """A new password for the administrator, printed."""
    password = secrets.token_urlsafe(15)
    airflow("users", "reset-password", "--username", ADMIN, "--password", password)
    show_password(password)


def show_password(password: str) -> None:
    """Print the login so that it is found in a long log."""
    line = "=" * 78
    print(f"{line}\n  Airflow login:  {ADMIN}  /  {password}\n  It is shown this once and kept nowhere. A new one:")
    print(f"  docker compose run --rm airflow-init admin-password\n{line}", flush=True)


def connections_from(env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The connections that .env describes; what it leaves empty is left to the UI.

    Raises:
        SetupError: Only half of a pair is given.
    """

    def given(*names: str) -> tuple[str, ...]:
        values = tuple(env.get(name, "").strip() for name in names)
        if any(values) and not all(values):
            empty = ", ".join(name for name, value in zip(names, values, strict=True) if not value)
            raise SetupError(
                f"{empty} is empty in .env, but belongs to {', '.join(names)}. Fill in all of them or none."
            )
        return values

    found: dict[str, dict[str, Any]] = {}
    user, password = given("PHYSIONET_USERNAME", "PHYSIONET_PASSWORD")
    if user:
        found["physionet_default"] = {
            "conn_type": "http",
            "host": "https://physionet.org",
            "login": user,
            "password": password,
            "description": "From .env, at every start.",
        }
    key, secret = given("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    extra = {
        "region_name": env.get("AWS_REGION", "").strip(),
        "endpoint_url": env.get("S3_ENDPOINT_URL", "").strip(),
        "role_arn": env.get("AWS_ROLE_ARN", "").strip(),
        "kms_key_id": env.get("S3_KMS_KEY_ID", "").strip(),
        "expected_bucket_owner": env.get("S3_BUCKET_OWNER", "").strip(),
    }
    extra = {name: value for name, value in extra.items() if value}
    if key or extra:
        found["aws_default"] = {"conn_type": "aws", "description": "From .env, at every start.", "extra": extra}
        if key:
            found["aws_default"] |= {"login": key, "password": secret}
    return found


def store_connections(connections: Mapping[str, Mapping[str, Any]]) -> None:
    """Make or replace connections; Airflow encrypts password and extra with the Fernet key."""
    # Made for its owner only and gone at the end of the block; `airflow connections add` would show them to ps.
    with NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(connections, file)
        file.flush()
        airflow("connections", "import", "--overwrite", file.name)


def set_up_demo() -> None:
    """Point both connections at the demo's services.

    Raises:
        SetupError: There is one that the demo did not make.
    """
    from airflow.models import Connection
    from airflow.utils.session import create_session

    wanted = {
        "physionet_default": {
            "conn_type": "http",
            "host": "http://physionet:8080",
            "login": DEMO_USER,
            "password": (SECRETS / "demo/physionet_password").read_text(),
            # The look-alike speaks no TLS, on a network that only the containers share.
            "extra": {"allow_http": True},
        },
        "aws_default": {
            "conn_type": "aws",
            "login": (SECRETS / "demo/s3_access_key").read_text(),
            "password": (SECRETS / "demo/s3_secret_key").read_text(),
            "extra": {"endpoint_url": "http://s3:8080", "region_name": "us-east-1"},
        },
    }
    with create_session() as session:
        found = session.query(Connection).filter(Connection.conn_id.in_(wanted)).all()
        yours = sorted(connection.conn_id for connection in found if connection.description != DEMO_MARK)
    if yours:
        raise SetupError(
            f"The demo would replace your own connection {yours[0]}; nothing was changed. Use the demo in a project of its "
            "own (docker compose -p mirror-demo --profile demo up), or delete the connection under Admin > Connections "
            "and empty its lines in .env."
        )
    store_connections({name: {**connection, "description": DEMO_MARK} for name, connection in wanted.items()})


def airflow(*arguments: str) -> None:
    """Run an ``airflow`` command in this process: importing Airflow once saves ten seconds, and ps shows no argument."""
    from airflow.cli import cli_parser

    parsed = cli_parser.get_parser().parse_args(arguments)
    parsed.func(parsed)


STEPS = {
    "secrets": make_secrets,
    "airflow": set_up_airflow,
    "demo": set_up_demo,
    "admin-password": reset_administrator,
}


def main() -> int:
    """Command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in STEPS:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        STEPS[sys.argv[1]]()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
