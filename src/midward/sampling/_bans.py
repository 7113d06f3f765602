"""The windows of a row's bans, and which tokens a position may not take."""

from collections.abc import Sequence

from .requests import Ban


def windows(bans: Sequence[Ban]) -> list[tuple[int, int]]:
    """Return the (start, stop) response positions that bans cover, overlapping ones merged, left to right."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted((ban.position, ban.position + len(ban.ids)) for ban in bans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def banned_at(bans: Sequence[Ban], position: int, decided: Sequence[int | None]) -> list[int]:
    """Return the tokens that would complete a ban at this response position.

    decided: what stands at each response position, None where nothing does yet.
    """
    tokens = []
    for ban in bans:
        offset = position - ban.position
        if 0 <= offset < len(ban.ids) and all(
            decided[ban.position + i] == token for i, token in enumerate(ban.ids) if i != offset
        ):
            tokens.append(ban.ids[offset])
    return tokens
