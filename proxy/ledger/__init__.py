"""The ledger: what ran and what it cost. One row per request, one per upstream call, and sums per hour.

Theory. One thread, the *writer*, owns the database. The event loop hands it finished records through a bounded queue and never
waits for it. The command line reads through its own read-only connection (``reading.py``) with the one set of queries that all
readers share (``queries.py``). SQLAlchemy is imported in the writer's thread, after the sockets listen, and by commands that write
or that read PostgreSQL: a file is read by ``sqlite3``.

No prompt, answer, header value, key or query is stored.
"""
