"""Problems and warnings, collected so that one message names them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from yolov7.errors import YoloError


@dataclass
class Findings:
    """Lines for a person, in the order they were found."""

    problems: list[str] = field(default_factory=list)
    """Each of them ends a stage for certain."""
    warnings: list[str] = field(default_factory=list)
    """May pass by themselves, or be intended."""

    def problem(self, text: str | None) -> None:
        """Add a problem; None adds nothing."""
        if text and text not in self.problems:
            self.problems.append(text)

    def warning(self, text: str | None) -> None:
        """Add a warning; None adds nothing."""
        if text and text not in self.warnings:
            self.warnings.append(text)

    def attempt(self, action: Callable[[], object]) -> bool:
        """Run a check that raises our errors; returns whether it passed."""
        try:
            action()
        except YoloError as error:
            self.problem(str(error))
            return False
        return True
