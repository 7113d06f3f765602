"""Probes: where in a response a model's safety sits, and what of it an attacker can reach.

Each probe forces, asks for or optimises something at a response position, has the responses judged, and leaves rows,
tables and one sentence that says what was found with its interval. `probe.Probe` is the record of one, `registry.find`
gives it by name, `probe.run` measures it.
"""
