# Airflow with this project: the official image, the project as a package, and its DAGs.
#
#   docker build -t physionet-mirror .                   the product
#   docker build -t physionet-mirror-demo --target demo . the same with the demo's PhysioNet look-alike
#
# Nothing secret is copied or asked for at build time; .dockerignore lets only the folders below into the build.

ARG AIRFLOW_VERSION=3.3.2
ARG PYTHON_VERSION=3.12

FROM apache/airflow:${AIRFLOW_VERSION}-python${PYTHON_VERSION} AS base
ARG AIRFLOW_VERSION

# Before the code, so that a change of code does not install anything anew. Naming Airflow beside the requirements
# keeps pip from moving it to another version. Celery 5.7 dropped a name that Airflow's Celery provider 3.26 imports; the
# bound changes nothing where the image has an older one.
COPY --chown=airflow:0 requirements.txt /opt/airflow/requirements.txt
COPY --chown=airflow:0 constraints.txt /opt/airflow/constraints.txt
RUN pip install --no-cache-dir --disable-pip-version-check \
        "apache-airflow==${AIRFLOW_VERSION}" "celery<5.7" \
        -r /opt/airflow/requirements.txt -c /opt/airflow/constraints.txt

# What compose mounts as volumes: a fresh named volume takes owner and mode of the folder in the image.
RUN cd /opt/airflow \
    && mkdir -p -m 0750 secrets/core secrets/queue secrets/database secrets/demo secrets/monitoring \
    && mkdir -p -m 0775 logs demo-data/physionet demo-data/s3

ENV AIRFLOW__CORE__LOAD_EXAMPLES=False \
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False

COPY --chown=airflow:0 deploy/airflow/ /opt/airflow/deploy/airflow/
COPY --chown=airflow:0 pyproject.toml README.md LICENSE requirements.txt /opt/airflow/source/
COPY --chown=airflow:0 include/ /opt/airflow/source/include/
COPY --chown=airflow:0 plugins/ /opt/airflow/source/plugins/
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps /opt/airflow/source
COPY --chown=airflow:0 dags/ /opt/airflow/dags/

# One check for every component: it looks at what this container runs (api-server, scheduler, worker, …).
HEALTHCHECK --interval=30s --timeout=25s --start-period=300s --retries=4 CMD ["python", "/opt/airflow/deploy/airflow/healthy.py"]

FROM base AS demo
ENV PYTHONPATH=/opt/airflow
COPY --chown=airflow:0 demo/ /opt/airflow/demo/

FROM base AS mirror
