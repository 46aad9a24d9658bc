"""The service among the programs that are used with it: real ones, which `make ecosystem` installs and starts."""
