"""Old name of :mod:`stages.deliver` and of the journal, kept for scripts that use it."""

import logging

from stages.deliver import main
from stages.registry.journal import RunJournal

__all__ = ["RunJournal", "main"]

if __name__ == "__main__":
    logging.getLogger(__name__).warning("`python -m stages.tracking` is now `python -m stages.deliver`")
    main()
