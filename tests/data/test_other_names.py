"""Modules that earlier releases called otherwise."""

from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("name", "other", "public"),
    [
        ("preparation", "integrity", ["KINDS", "Finding", "Report", "check_annotations", "inspect_series"]),
        ("preparation.archives", "unpack", ["DamagedArchive", "find_sources", "series_in_zip", "unpack_series"]),
    ],
)
def test_the_other_name_of_a_module_has_the_same_in_it(name, other, public):
    module, alias = (import_module(f"a3d_det2.data.{n}") for n in (name, other))
    assert [getattr(alias, n) for n in public] == [getattr(module, n) for n in public]


def test_preparation_was_one_module():
    from a3d_det2.data.preparation import Journal, make_jobs, prepare_series

    folder = "a3d_det2.data.preparation"
    modules = [each.__module__ for each in (Journal, make_jobs, prepare_series)]
    assert modules == [f"{folder}.journal", f"{folder}.series", f"{folder}.series"]
