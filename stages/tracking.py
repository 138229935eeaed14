"""Old name of :mod:`stages.deliver`, kept for scripts that call it."""

import logging

from stages.deliver import main

if __name__ == "__main__":
    logging.getLogger(__name__).warning("`python -m stages.tracking` is now `python -m stages.deliver`")
    main()
