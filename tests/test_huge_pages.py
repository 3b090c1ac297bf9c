"""A command starts again with huge pages, once, and only where that has an effect."""

import json
import os
import subprocess
import sys

import pytest

from geopol_tkg.huge_pages import huge_pages

PROGRAM = """
import json, os, resource, sys
from geopol_tkg.huge_pages import restart_with_huge_pages

print("started", flush=True)
restart_with_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * (1 << 26)  # 16,384 pages of 4 KiB
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), faults, os.getpid()]))
"""
needs_effect = pytest.mark.skipif(not huge_pages(), reason="huge pages are not there for who asks with glibc")


def run(*arguments, **environment):
    """How often the program started, its pid, and what it printed at last."""
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], env=clean | environment, stdout=subprocess.PIPE, text=True
    )
    *starts, last = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return len(starts), process.pid, json.loads(last)


@needs_effect
def test_a_command_starts_again_in_its_own_place_with_its_arguments():
    starts, pid, (arguments, tunables, faults, last_pid) = run("train", "--lr", "1e-3")
    assert (starts, arguments, last_pid) == (2, ["train", "--lr", "1e-3"], pid)
    assert tunables == "glibc.malloc.hugetlb=1"
    assert faults < 1000


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "-h"), ("--version",)])
def test_help_does_not_wait_for_it(arguments):
    assert run(*arguments)[0] == 1


@pytest.mark.parametrize("given", ["", "glibc.malloc.tcache_count=0"])
def test_who_sets_the_variable_has_decided(given):
    starts, _, (_, tunables, _, _) = run("train", GLIBC_TUNABLES=given)
    assert (starts, tunables) == (1, given)


@needs_effect
def test_without_it_every_page_is_faulted_in():
    assert run("train", GLIBC_TUNABLES="")[2][2] >= 16_384


def test_where_it_has_no_effect_nothing_is_asked_for(monkeypatch, tmp_path):
    setting = tmp_path / "enabled"
    monkeypatch.setattr("geopol_tkg.huge_pages._SETTING", setting)
    assert huge_pages() == {}
    setting.write_text("[always] madvise never\n")
    assert huge_pages() == {}
