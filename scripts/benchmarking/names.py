"""Names of what is compared."""

from __future__ import annotations

from scripts.cli.errors import UserError


FASEG = "FASeg"
MASK2FORMER = "HF Mask2Former"
# After "FASeg" any of these words: what is done to the model once it is built.
VARIANT_WORDS = ("bf16", "fp16", "compiled", "kernels")
CONTEXT = ("HF SegFormer-B2", "HF EoMT-L")
PLAIN = "plain implementation"
EVALUATE = "evaluate's algorithm"


def check_contestant(name: str) -> None:
    """Refuses names that are none of the contestants'.

    Raises:
        UserError: names it.
    """
    first, *words = name.split() or [""]
    known = name in (MASK2FORMER, *CONTEXT) or (first == FASEG and all(word in VARIANT_WORDS for word in words))
    if not known:
        raise UserError(
            f"--contestants {name!r}: choose {MASK2FORMER!r}, {CONTEXT[0]!r}, {CONTEXT[1]!r} or {FASEG!r} followed by "
            f"any of {', '.join(VARIANT_WORDS)}"
        )
