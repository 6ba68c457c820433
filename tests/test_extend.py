"""The how-to of extensions, run as a reader would, and its job in another process's fresh kernel."""
import nbformat

from macular.core import Registry
from conftest import copy_project  # noqa: F401


def test_the_same_record_may_be_defined_again():
    "As a cell that is run twice does: the class is another object, the record says the same"
    from dataclasses import dataclass
    def make(value):
        @dataclass(frozen=True)
        class Thing:
            name: str
            value: int = 0
        return Thing("a", value)
    registry = Registry("thing")
    registry.add(make(1))
    again = registry.add(make(1))
    assert registry["a"] is again
    import pytest
    from macular.core import ParameterError
    with pytest.raises(ParameterError, match="another thing named 'a'"): registry.add(make(2))
