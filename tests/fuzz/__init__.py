"""The API, tried with random requests: a short form here, for minutes in `make fuzz`."""
