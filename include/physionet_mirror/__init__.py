"""The engine: mirrors a PhysioNet dataset into an S3 bucket. Plain Python, knows nothing of Airflow.

The modules in the order in which the data walks:
dataset → source → manifest → selection → shards → destination → transfer → verification → report.
"""

__version__ = "0.1.0"
PROJECT = "physionet-mirror"
PROJECT_URL = "https://github.com/physionet-mirror/physionet-mirror"
