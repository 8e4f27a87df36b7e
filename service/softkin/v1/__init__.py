"""Generated from protos/softkin/v1 by `make protos`; never edited."""
