"""The table of sources knows every value of `data.source`, and each has its group of parameters."""

from __future__ import annotations

from typing import get_args

from stages.project.params_data import Data, Remote
from stages.sources.read import FETCHERS, MAKERS, READERS


def test_every_source_has_one_entry_and_a_group_of_parameters():
    sources = get_args(Data.model_fields["source"].annotation)
    assert sorted([*FETCHERS, *MAKERS, *READERS]) == sorted(sources)
    assert set(sources) <= set(Data.model_fields)


def test_what_is_fetched_has_a_format_that_can_be_read():
    assert set(get_args(Remote.model_fields["format"].annotation)) == set(READERS)
