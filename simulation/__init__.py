"""Deterministic simulation of the session layer: the service's own code, with replicas, one store and several clients
on one thread. The clock is virtual, and one seed determines the order of events.

    python -m simulation --seconds 60          run seeds for a minute
    python -m simulation --seed 7 --verbose    replay one seed

Only `system.py` and `adapters.py` know how the service is composed. All other files use the messages of `carousel.v1`.
"""
