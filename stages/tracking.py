"""Old name of :mod:`stages.deliver`."""

import logging

from stages.registry.tracking import main

if __name__ == "__main__":
    logging.getLogger(__name__).warning("`python -m stages.tracking` is now `python -m stages.deliver`")
    main()
