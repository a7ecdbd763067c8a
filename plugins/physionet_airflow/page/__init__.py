"""The page: an overview of the mirrors, a live view of a run, and a plan before it is triggered (docs/page.md).

app      the routes, and the headers of every answer
access   who may see what: Airflow's login, the right to read the DAG, and the buckets of readable runs
runs     queries to Airflow's database about our runs
mirrors  what is in each of many mirrors, looked at side by side
plans    the plan views: images of MIMIC-CXR-JPG, files of any project
reads    what the views read of buckets and database, kept for a while
cache    the in-process cache, with single-flight loading
show     what the templates are given: formatted numbers and sentences
form     the trigger form's params, from the address and back
"""
