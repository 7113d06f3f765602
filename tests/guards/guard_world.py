"""Prompts and sizes of the guards' tests."""

LENGTH, STEPS = 16, 8


def prompts(start, count):
    return [f"t{30 + n % 400} t{31 + 7 * n % 400} t{32 + 13 * n % 400}" for n in range(start, start + count)]
