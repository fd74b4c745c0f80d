"""A bounded run of the bundle's fuzzer (tests/fixtures/fuzz_bundle.py runs longer)."""

import pytest
from fuzz_bundle import EMBEDDED, Fuzzer

pytestmark = pytest.mark.slow

# What passes the checks is loaded by OpenVINO in longer runs only.
CASES = 100


@pytest.fixture(scope="module")
def fuzzer():
    fuzzer = Fuzzer(EMBEDDED, load=False)
    yield fuzzer
    fuzzer.close()


def test_every_outcome_is_success_or_one_of_our_errors(fuzzer):
    for seed in range(CASES):
        fuzzer.run(seed)
    kinds = {outcome.partition(":")[0] for outcome in fuzzer.outcomes}
    assert kinds == {"bytes", "fields", "graph", "constants", "merges", "cache"}
    refused = sum(n for outcome, n in fuzzer.outcomes.items() if outcome.endswith("refused"))
    assert refused > CASES / 3, fuzzer.outcomes
