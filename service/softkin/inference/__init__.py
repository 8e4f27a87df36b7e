"""Generated from protos/softkin/inference by `make protos`; never edited."""
