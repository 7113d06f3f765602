"""What a server grants with `--research`, on loopback alone: its model's tokens, span scores and gradients.

`/midward/model` and `/midward/tokenizer` are all that a client needs to make prompts and tokens by itself.
"""

from __future__ import annotations

from fastapi import APIRouter

from midward.serving.card import Card
from midward.serving.engine import Engine
from midward.serving.spans import GradientBody, GradientRecord, ScoreBody, ScoreRecord, TokenizerRecord


def router(engine: Engine, card: Card, *, batch_size: int) -> APIRouter:
    """The paths under /midward. An InputError that they raise is the client's: 400.

    Args:
        engine: answers.
        card: of the same engine, with `research`.
        batch_size: rows a forward.
    """
    routes = APIRouter(prefix="/midward", tags=["research"])

    @routes.get("/model")
    async def model() -> Card:
        """What the server says of its model."""
        return card

    @routes.get("/tokenizer")
    def tokenizer() -> TokenizerRecord:
        """Its tokenizer, with the chat template."""
        return TokenizerRecord.of(engine.model)

    @routes.post("/score")
    async def score(body: ScoreBody) -> dict[str, list[ScoreRecord]]:
        """Log-probabilities of spans of a response."""
        spans = [each.span() for each in body.spans]
        scores = await engine.score(spans, mode=body.mode, length=body.length, batch_size=batch_size)
        return {"scores": [ScoreRecord.of(each) for each in scores]}

    @routes.post("/gradient")
    async def gradient(body: GradientBody) -> GradientRecord:
        """The gradient of a span's negative log-probability at prompt slots."""
        span = body.span.span()
        found = await engine.gradient(span, body.slots, length=body.length, batch_size=batch_size)
        return GradientRecord.of(found)

    return routes
