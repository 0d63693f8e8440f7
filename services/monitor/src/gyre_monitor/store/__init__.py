"""The monitor's state in SQL: tables, the projection of events into them, and the queries over them.

Decisions are made in the transaction that stores the events they follow from, so handlers use the store as it is,
without a port between them.
"""
