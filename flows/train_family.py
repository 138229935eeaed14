"""Old name of :mod:`flows.train_variants`, for one release: deployments made with it still run.

`prefect deploy --all` makes `train-variants/nightly` beside an existing `train-family/nightly`, with its own schedule.
Pause the schedule of the old one (`prefect deployment schedule ls train-family/nightly` gives its ID for
`prefect deployment schedule pause train-family/nightly ID`), and delete it when nothing addresses it any more
(`prefect deployment delete train-family/nightly`). The next release removes this module.
"""

from __future__ import annotations

from prefect import flow, get_run_logger

from flows.report import RunReport
from flows.train_variants import THREADS, train_variants


@flow(name="train-family", task_runner=THREADS, persist_result=False)
def train_family(variants: list[str] | None = None, promote_challengers: bool = True) -> RunReport:
    """Old name of `train-variants`; runs the same.

    Args:
        variants: names from `params.yaml: variants`; default: all of them.
        promote_challengers: run the promotion gate at the end.
    """
    get_run_logger().warning(
        "the flow train-family is now called train-variants; the old name works until the next release. Run "
        "`prefect deploy --all`, use train-variants/nightly, and `prefect deployment delete train-family/nightly`"
    )
    return train_variants.fn(variants, promote_challengers)
