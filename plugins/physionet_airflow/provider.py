"""The provider's description for Airflow, with the connection type ``physionet`` and its form.

Airflow finds it only by the entry point ``apache_airflow_provider`` of the installed package. If the folders are used
without installing, a connection of type ``http`` does the same, without the form and its Test button.
"""

from __future__ import annotations

from typing import Any


def provider_info() -> dict[str, Any]:
    """The provider's description (source: Airflow's provider_info.schema.json and, for the form, provider.yaml)."""

    def text(label: str, description: str, kind: str = "string") -> dict[str, Any]:
        return {"label": label, "description": description, "schema": {"type": [kind, "null"]}}

    return {
        "package-name": "physionet-mirror",
        "name": "PhysioNet",
        "description": "Credentialed datasets from https://physionet.org",
        "connection-types": [
            {
                "connection-type": "physionet",
                "hook-class-name": "physionet_airflow.hook.PhysioNetHook",
                "hook-name": "PhysioNet",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema"],
                    "relabeling": {
                        "host": "Address",
                        "login": "PhysioNet user name",
                        "password": "PhysioNet password",
                    },
                    "placeholders": {
                        "host": "https://physionet.org",
                        "port": "443; Airflow's Test button needs one",  # its UI sends 0 for an empty field
                        "login": "as at physionet.org/login",
                        "password": "S3 keys and ARN: in physionet_s3, type Amazon Web Services",
                    },
                },
                "conn-fields": {
                    "dataset": text(
                        "Dataset to test with",
                        "The Test button asks for this dataset, such as mimic-cxr-jpg/2.1.0 (the default). "
                        "Each dataset has an agreement of its own.",
                    ),
                    "user_agent": text(
                        "User agent",
                        "Leave empty. PhysioNet reads a password only from agents that begin with Wget/ or libwfdb/.",
                    ),
                    "connect_timeout": text("Connect time-out (s)", "Empty = 10.", "number"),
                    "read_timeout": text(
                        "Read time-out (s)",
                        "Empty = 30; a server that sends nothing, or almost nothing, for longer counts as stalled.",
                        "number",
                    ),
                    "allow_http": text(
                        "Allow plain http", "Only for a test server: the password travels unprotected.", "boolean"
                    ),
                },
            }
        ],
    }
