"""The tasks of a user: the first owned resource, and the model for the next."""
