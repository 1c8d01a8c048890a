import os

from hypothesis import settings

# A busy machine is no failure, and a run repeats; VTC_TEST_EXAMPLES=1000 explores instead.
examples = int(os.environ.get("VTC_TEST_EXAMPLES", 0))
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=examples or 1)
settings.load_profile("explore" if examples else "fixed")
