"""What each task of a DAG does, as a function of the request, the source and the bucket.

One module a step, so that a task imports what it needs and no more: to list keys must not cost an import of pandas.
"""
