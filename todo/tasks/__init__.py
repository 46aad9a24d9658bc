"""The tasks of a user: the first owned resource, and the pattern of the next."""
