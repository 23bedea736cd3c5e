"""Progress bars on stderr. Commands import this file late, for `tqdm` takes time to load."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from .console import MIN_DONE, MIN_SECONDS, shows_bars


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that only counts until a rate is known, and leaves nothing on the terminal.

    Args:
        iterable: what the bar counts; None if the caller updates it.
        unit: what is counted, in the plural.
        settings: those of tqdm.
    """

    is_estimate = False
    """Whether the total may still change; a "~" shows it."""

    nrows = property(lambda _: None, lambda *_: None)  # tqdm hides bars from a terminal that reports 0 rows

    def __init__(self, iterable: Any = None, *, unit: str, **settings: Any) -> None:
        unit = unit if settings.get("unit_scale") else f" {unit}"
        settings |= {"disable": not shows_bars(), "file": sys.stderr, "dynamic_ncols": True, "leave": False}
        super().__init__(iterable, unit=unit, **settings)

    def count_from(self, seconds: float) -> None:
        """Measure the rate from so many seconds ago."""
        # tqdm does not clear a bar that it believes to be younger than its last drawing.
        self.start_t = self.last_print_t = time.time() - seconds

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm draws."""
        facts = dict(super().format_dict)
        facts["ncols"] = max(facts["ncols"] or 0, 0) or 79  # some report 0 columns
        return facts | {"bar_format": facts["bar_format"] or self._choose_format(facts)}

    def _choose_format(self, facts: dict[str, Any]) -> str:
        count = "{n_fmt}/" + "~" * self.is_estimate + "{total_fmt}{unit}" if facts["total"] else "{n_fmt}{unit}"
        if facts["n"] < MIN_DONE or facts["elapsed"] < MIN_SECONDS:
            return f"{{desc}}{count} [{{elapsed}}]"
        if not facts["total"]:
            return f"{{desc}}{count} [{{elapsed}}, {{rate_noinv_fmt}}]"
        return f"{{l_bar}}{{bar}}| {count} [{{elapsed}}<{{remaining}}, {{rate_noinv_fmt}}]"
