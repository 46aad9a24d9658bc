"""Benchmarks: the service compared with other frameworks (`make bench`), and with itself."""
