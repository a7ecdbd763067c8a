"""What Airflow gains: a PhysioNet connection, and sensors and operators that are thin shells around the engine.

    hook        the connection to PhysioNet            params      the trigger forms
    bucket      the bucket, through the S3Hook         retry       which errors are worth another try
    sensors     access check, missing?                 operators   metadata, plan, approval, stream, verify
    mirror      the mapped group that DAGs share       audit, cleanup   the operators of these two DAGs

Nothing here imports pandas, boto3 or pyarrow before a task runs: Airflow parses DAG files every few seconds.
"""
