"""`python -m yolov7.cli`."""

import sys

from yolov7.cli import main

if __name__ == "__main__":
    sys.exit(main())
