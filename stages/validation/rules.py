"""The expectations, as data: what is expected of which column, how bad it is, and what to do about it.

Each rule is one Great Expectations expectation on one column of one table (the columns: see `tables`). A missing value
passes every expectation but those about missing values, so a rule speaks up about one thing only: a box that is not
finite breaks `box-is-finite` and no rule about where it lies.

To add a rule, add a record here; where no column fits, compute one in `tables` first. References between tables are
columns too: an expectation with 118,000 permitted values takes seconds, a column of booleans none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["blocking", "warning"]

BORDER_TOLERANCE = 1.0
"""Pixels a box may reach beyond its image: annotation tools round, and many count pixels from one."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One expectation, and the words it is reported in."""

    name: str
    table: Literal["splits", "categories", "classes", "images", "annotations"]
    severity: Severity
    """`blocking` stops the pipeline; `warning` is reported."""
    expectation: str
    """Type of the expectation in Great Expectations' own words."""
    column: str
    arguments: dict[str, Any]
    """The expectation's other arguments."""
    says: str
    """What holds when the rule passes."""
    value: str
    """What to show of a record that breaks it: a format text over the columns of its row."""
    action: str
    """What the owner of the data should do."""
    needs_pixels: bool = False
    """Only judged when the images were decoded (`validation.check_images`)."""


def _is_true(**words: Any) -> Rule:
    return Rule(expectation="expect_column_values_to_be_in_set", arguments={"value_set": [True]}, **words)


def _is_between(low: float | None, high: float | None, *, strict: bool = False, **words: Any) -> Rule:
    bounds = {"min_value": low, "max_value": high, "strict_min": strict or None}
    arguments = {name: value for name, value in bounds.items() if value is not None}
    return Rule(expectation="expect_column_values_to_be_between", arguments=arguments, **words)


def _is_missing(**words: Any) -> Rule:
    return Rule(expectation="expect_column_values_to_be_null", arguments={}, **words)


SPLITS = (
    _is_between(
        1,
        None,
        name="split-has-images",
        table="splits",
        severity="blocking",
        column="images",
        says="every split has images",
        value="{images} images",
        action="give the split images, or name another annotation file in params.yaml",
    ),
    _is_between(
        1,
        None,
        name="split-has-boxes",
        table="splits",
        severity="blocking",
        column="boxes",
        says="every split has boxes that are no crowd",
        value="{boxes} boxes",
        action="annotate the split: without boxes there is nothing to learn and nothing to measure",
    ),
    _is_between(
        1,
        None,
        name="split-has-categories",
        table="splits",
        severity="blocking",
        column="categories",
        says="every split lists categories",
        value="{categories} categories",
        action="list the categories in the annotation file",
    ),
)

CATEGORIES = (
    _is_between(
        None,
        1,
        name="category-id-is-unique",
        table="categories",
        severity="blocking",
        column="uses_of_id",
        says="no category id is given twice",
        value="category id {category_id} ({name!r}) occurs {uses_of_id} times",
        action="give each category its own id",
    ),
    _is_between(
        None,
        1,
        name="category-name-is-unique",
        table="categories",
        severity="blocking",
        column="uses_of_name",
        says="no category name is given twice",
        value="category name {name!r} occurs {uses_of_name} times (id {category_id})",
        action="rename or merge the categories: two classes of one name cannot be told apart in any report",
    ),
    _is_missing(
        name="category-is-in-every-split",
        table="classes",
        severity="blocking",
        column="missing_from",
        says="train, val and test list the same categories, by id and name",
        value="category {category_id} {name!r} is not listed in {missing_from}",
        action="list the same categories, with the same ids and names, in the annotation file of every split",
    ),
    _is_between(
        1,
        None,
        name="class-has-training-boxes",
        table="classes",
        severity="warning",
        column="train",
        says="every class has boxes to train on",
        value="class {name!r} (category {category_id}) has {train} training boxes",
        action="annotate examples of the class, or remove it: it cannot be learned",
    ),
)

IMAGES = (
    _is_between(
        None,
        1,
        name="image-id-is-unique",
        table="images",
        severity="blocking",
        column="uses_of_id",
        says="no image id is given twice in a split",
        value="image id {image_id} occurs {uses_of_id} times",
        action="give each image its own id",
    ),
    _is_between(
        None,
        1,
        name="image-file-is-unique",
        table="images",
        severity="blocking",
        column="uses_of_file",
        says="no two image records of a split name the same file",
        value="{file_name!r} is named by {uses_of_file} image records",
        action="keep one image record and move the annotations of the others to it",
    ),
    _is_true(
        name="image-size-is-valid",
        table="images",
        severity="blocking",
        column="size_is_valid",
        says="the annotated width and height are positive whole numbers",
        value="annotated as {width} x {height}",
        action="write the image's true width and height",
    ),
    _is_true(
        name="image-file-exists",
        table="images",
        severity="blocking",
        column="file_exists",
        says="every image has its file",
        value="no file {file_name!r}",
        action="bring the file, or remove the image and its annotations",
    ),
    _is_missing(
        name="image-decodes",
        table="images",
        severity="blocking",
        column="defect",
        says="every image file decodes, to its last pixel",
        value="{defect}",
        action="fetch or export the file again, or remove the image and its annotations",
        needs_pixels=True,
    ),
    _is_true(
        name="image-size-matches",
        table="images",
        severity="blocking",
        column="size_matches",
        says="width and height of the file are those annotated",
        value="annotated as {width} x {height}, the file is {file_width:.0f} x {file_height:.0f}",
        action="correct width and height, and see that the boxes were drawn on this very image",
        needs_pixels=True,
    ),
    _is_missing(
        name="image-decodes-quietly",
        table="images",
        severity="warning",
        column="complaint",
        says="the decoder has nothing to complain about",
        value="{complaint}",
        action="look at the image; if it is not damaged, saving it again ends the complaint",
        needs_pixels=True,
    ),
)

ANNOTATIONS = (
    _is_between(
        None,
        1,
        name="annotation-id-is-unique",
        table="annotations",
        severity="blocking",
        column="uses_of_id",
        says="no annotation id is given twice in a split",
        value="annotation id {annotation_id} occurs {uses_of_id} times",
        action="give each annotation its own id",
    ),
    _is_true(
        name="annotation-image-is-known",
        table="annotations",
        severity="blocking",
        column="image_is_known",
        says="every annotation belongs to a listed image",
        value="image_id {image_id} is not listed",
        action="list the image, correct the id, or remove the annotation",
    ),
    _is_true(
        name="annotation-category-is-known",
        table="annotations",
        severity="blocking",
        column="category_is_known",
        says="every annotation belongs to a listed category",
        value="category_id {category_id} is not listed",
        action="list the category, correct the id, or remove the annotation",
    ),
    _is_true(
        name="box-is-finite",
        table="annotations",
        severity="blocking",
        column="box_is_finite",
        says="the four numbers of every box are finite",
        value="bbox {bbox}",
        action="draw the box again or remove the annotation",
    ),
    _is_between(
        0,
        None,
        strict=True,
        name="box-width-is-positive",
        table="annotations",
        severity="blocking",
        column="box_width",
        says="every box is wider than nothing",
        value="bbox {bbox} (left, top, width, height)",
        action="draw the box again or remove the annotation",
    ),
    _is_between(
        0,
        None,
        strict=True,
        name="box-height-is-positive",
        table="annotations",
        severity="blocking",
        column="box_height",
        says="every box is higher than nothing",
        value="bbox {bbox} (left, top, width, height)",
        action="draw the box again or remove the annotation",
    ),
    _is_between(
        None,
        BORDER_TOLERANCE,
        name="box-is-inside-image",
        table="annotations",
        severity="blocking",
        column="overhang",
        says=f"no box reaches more than {BORDER_TOLERANCE:g} pixel beyond its image",
        value="bbox {bbox} reaches {overhang:g} pixels beyond the {image_width} x {image_height} image",
        action="cut the box to the image, or see that it was drawn on this very image",
    ),
    _is_true(
        name="box-is-not-repeated",
        table="annotations",
        severity="warning",
        column="box_is_new",
        says="no box repeats an earlier one of the same image and category",
        value="bbox {bbox} of category {category_id} repeats an earlier annotation of the image",
        action="remove the repetition; training leaves it out",
    ),
)

RULES: tuple[Rule, ...] = (*SPLITS, *CATEGORIES, *IMAGES, *ANNOTATIONS)
