"""Trains the models of the invented world that lie in the package. Outside the wheel."""
