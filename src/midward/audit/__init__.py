"""What an endpoint lets in, seen from outside: harmless questions, and what the answers prove."""
