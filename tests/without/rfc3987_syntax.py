"""Hides the package of this name from tests and the processes they start: jsonschema would compile its grammar of IRIs
whenever nbformat is imported, which takes seconds, and no notebook holds an IRI."""

raise ImportError("rfc3987_syntax is left out of the tests, see tests/without")
