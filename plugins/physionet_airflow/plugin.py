"""The plugin: registers the page and the links on tasks; see page/ and docs/page.md.

Airflow finds it by the package's entry point, or through ``physionet_plugin.py`` in its plugins folder.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from physionet_airflow.links import LINKS


class LazyPage:
    """The page's web application, built at its first request.

    Every Airflow process loads this plugin; only the API server needs FastAPI's routes and all that they import.
    """

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            from physionet_airflow.page.app import make_app

            self._app = make_app()
        await self._app(scope, receive, send)


APPS: list[Any] = [{"app": LazyPage(), "url_prefix": "/physionet", "name": "PhysioNet mirror"}]

VIEWS: list[Any] = [
    {
        "name": "PhysioNet",
        "url_route": "physionet",
        "href": "physionet/",
        "destination": "nav",
        "icon": "physionet/static/icon.svg",
    }
]


class PhysioNetPlugin(AirflowPlugin):
    """Overview, live run and planning, as an entry in Airflow's navigation and as buttons on our tasks.

    Not as tabs of DAG and run: Airflow's UI puts a plugin's tabs on every DAG of the installation (up to 3.3).
    """

    name = "physionet"
    fastapi_apps = APPS
    external_views = VIEWS
    operator_extra_links = LINKS
