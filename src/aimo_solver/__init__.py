"""Olympiad maths with an open LLM under a hard clock."""
