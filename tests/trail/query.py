"""Runs the queries of queries.sql with DuckDB.

    query.py FOLDER YEAR MONTH DAY TABLE KEY [NAME...]

Prints one JSON object: the rows of each query, or of those that are named, under its name.
"""
import json
import pathlib
import sys

import duckdb

names = ["folder", "year", "month", "day", "table", "key"]
arguments = dict(zip(names, sys.argv[1:7]))
wanted = sys.argv[7:]
text = pathlib.Path(__file__).with_name("queries.sql").read_text()
connection = duckdb.connect()
answers = {}
for part in text.split("-- name: ")[1:]:
    name, statements = part.split("\n", 1)
    for placeholder, value in arguments.items():
        statements = statements.replace("{" + placeholder + "}", value)
    if name == "view":
        connection.execute(statements)
    elif name in wanted or not wanted:
        result = connection.execute(statements)
        columns = [column[0].lower() for column in result.description]
        answers[name] = [dict(zip(columns, row)) for row in result.fetchall()]
json.dump(answers, sys.stdout)
