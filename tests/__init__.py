"""The suite; it mirrors todo/. Every test runs with a real database and a real identity."""
