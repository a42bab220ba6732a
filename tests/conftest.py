"""For all tests."""

from hypothesis import settings

# A busy machine is no finding: what takes too long runs into pytest-timeout.
settings.register_profile("kdns", deadline=None)
settings.load_profile("kdns")
