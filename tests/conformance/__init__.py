"""Conformance: recorded transitions of the documented engine, replayed and compared field by field."""
