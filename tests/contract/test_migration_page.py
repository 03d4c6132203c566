"""What docs/migrating-from-tgi.md says of the launcher's flags is what our settings do."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.services.settings import PROCESSES
from headrace.services.settings_loader import RETIRED_FLAGS, aliases_of, flag_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating-from-tgi.md"
_LAUNCHER = """
model-id revision validation-workers sharded num-shard quantize speculate dtype kv-cache-dtype trust-remote-code
max-concurrent-requests max-best-of max-stop-sequences max-top-n-tokens max-input-tokens max-input-length
max-total-tokens waiting-served-ratio max-batch-prefill-tokens max-batch-total-tokens max-waiting-tokens max-batch-size
cuda-graphs hostname port prometheus-port shard-uds-path master-addr master-port huggingface-hub-cache
weights-cache-override disable-custom-kernels cuda-memory-fraction rope-scaling rope-factor json-output otlp-endpoint
otlp-service-name cors-allow-origin api-key watermark-gamma watermark-delta ngrok ngrok-authtoken ngrok-edge
tokenizer-config-path disable-grammar-support env max-client-batch-size lora-adapters usage-stats payload-limit
enable-prefill-logprobs graceful-termination-timeout
"""
LAUNCHER = _LAUNCHER.split()
"""Every flag of the launcher of Text Generation Inference 3."""

OURS = {
    name
    for kind in PROCESSES.values()
    for field, info in kind.model_fields.items()
    for name in (flag_of(field).removeprefix("--"), *aliases_of(info))
}


def rows() -> Iterator[tuple[list[str], str]]:
    """Yields the flags of each row, and what there is in their place."""
    table = PAGE.read_text().partition("## Flags of the launcher")[2]
    for line in table.splitlines():
        if line.startswith("| `--"):
            theirs, ours = line.strip("| ").split(" | ", 1)
            yield re.findall(r"--([a-z-]+)", theirs), ours


def test_every_flag_of_the_launcher_is_there_once() -> None:
    listed = [name for names, _ in rows() for name in names]
    assert sorted(listed) == sorted(LAUNCHER)


@pytest.mark.parametrize(("theirs", "ours"), list(rows()))
def test_a_row_is_true(theirs: list[str], ours: str) -> None:
    named = set(re.findall(r"--([a-z-]+)", ours))
    assert named <= OURS, "the page names a flag that we do not have"
    if re.search(r"^the same|, the same|also by the old name", ours):
        assert set(theirs) <= OURS, "the page says that the old name is taken"
    if ours.startswith("none"):
        assert not set(theirs) & OURS, "the page says that there is none"


def test_a_flag_that_is_refused_with_advice_is_on_the_page() -> None:
    assert set(RETIRED_FLAGS) <= set(LAUNCHER)
    for advice in RETIRED_FLAGS.values():
        assert set(re.findall(r"--([a-z-]+)", advice)) <= OURS
