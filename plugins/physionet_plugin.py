"""The plugin for an Airflow that reads this folder. Where the package is installed too, its entry point has told of it."""

from importlib.metadata import entry_points

if not entry_points(group="airflow.plugins", name="physionet"):
    from physionet_airflow.plugin import PhysioNetPlugin  # noqa: F401
