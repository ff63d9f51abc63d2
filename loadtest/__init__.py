"""Measures any OpenAI-style server from outside: it speaks HTTP only, and says what it measured."""
