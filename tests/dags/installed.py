"""Run as a process of its own with an Airflow environment: prints as JSON what Airflow knows about this project."""

import json
import os
import sys

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # Airflow 3.1
    from airflow.models.dagbag import DagBag
from airflow import plugins_manager
from airflow.providers_manager import ProvidersManager

connection_types = ProvidersManager().hooks
if hasattr(plugins_manager, "get_import_errors"):
    plugins, _ = plugins_manager._get_plugins()
    errors = plugins_manager.get_import_errors()
else:  # Airflow 3.1
    plugins_manager.ensure_plugins_loaded()
    plugins, errors = plugins_manager.plugins, plugins_manager.import_errors
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])

print(
    "\n"
    + json.dumps(
        {
            "dags": list(bag.dags),
            "dag_errors": bag.import_errors,
            "plugins": [plugin.name for plugin in plugins],
            "links": sum(len(plugin.operator_extra_links) for plugin in plugins),
            "plugin_errors": errors,
            "connection_type": "physionet" in connection_types,
            "engine": sys.modules["physionet_mirror"].__file__,
        }
    )
)
