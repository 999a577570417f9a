"""Observers of records: the log and the metrics of a finished request."""
