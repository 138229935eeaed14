"""Deliver the records of trainings that ran while MLflow was away: `python -m stages.deliver`."""

from stages.registry.tracking import main

if __name__ == "__main__":
    main()
