"""The page: the mirror at a glance, a run live, and a plan before it is triggered (docs/page.md).

app      the routes, and the headers of every answer
access   who may see what: Airflow's login, the right to read the DAG, and the buckets of readable runs
runs     what Airflow's database knows of our runs
state    what is kept in the process, so that ten readers cost as much as one
show     what the templates are given: numbers as words
form     the trigger form's params, from the address and back
"""
