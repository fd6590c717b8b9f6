"""Deterministic simulation of the session layer: the service's own code, replicas, one store and several clients on one
thread, with a virtual clock, in an order drawn from one seed.

    python -m simulation --seconds 60          run seeds for a minute
    python -m simulation --seed 7 --verbose    replay one seed

Only `system.py` knows how the service is composed. Everything else speaks the messages of `carousel.v1`.
"""
