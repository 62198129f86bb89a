"""What a check says: a figure, its unit and threshold, and whether it passed."""

import math
from dataclasses import dataclass

_SMALLEST_EXPONENT = -4  # of ten; smaller figures are written with it


@dataclass(frozen=True)
class Verdict:
    """One figure and what it means. One that is infinite or NaN has failed, and becomes None: JSON has no word for it.

    Attributes:
        name: what was measured.
        value: the figure, or None if this trajectory does not allow it.
        unit: of value, threshold and error; "" for a ratio.
        threshold: largest size that passes, or None for a figure that is not judged, or not by its size alone.
        passed: None when not judged.
        explanation: in a sentence: where the threshold comes from, or why there is no verdict.
        error: standard error of value, or None.
    """

    name: str
    value: float | None
    unit: str
    threshold: float | None
    passed: bool | None
    explanation: str
    error: float | None = None

    def __post_init__(self) -> None:
        """Replaces what is not finite; `object.__setattr__`, since the rest of the program may not."""
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "value", None)
            object.__setattr__(self, "passed", False)
            object.__setattr__(self, "explanation", f"not finite: {self.explanation}")
        if self.error is not None and (self.value is None or not math.isfinite(self.error)):
            object.__setattr__(self, "error", None)

    @property
    def text(self) -> str:
        """The figure for people, with its error and to the digits that the error leaves, or "-"."""
        if self.value is None:
            return "-"
        if not self.error:
            return f"{self.value:.3g}"
        exponent = math.floor(math.log10(max(abs(self.value), self.error)))
        power = 0 if exponent >= _SMALLEST_EXPONENT else exponent
        value, error = self.value / 10.0**power, self.error / 10.0**power
        decimals = max(0, 1 - math.floor(math.log10(error)))
        if power == 0:
            return f"{value:.{decimals}f} ± {error:.{decimals}f}"
        return f"({value:.{decimals}f} ± {error:.{decimals}f})e{power:+03d}"
