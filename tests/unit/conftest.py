"""Settings of the unit tests: hypothesis makes the same examples each time and leaves no files behind."""

from hypothesis import settings

settings.register_profile("unit", database=None, deadline=None, derandomize=True, max_examples=200)
settings.load_profile("unit")
