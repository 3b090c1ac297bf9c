"""A command starts again with huge pages, once, and only where that has an effect."""

import json
import os
import subprocess
import sys

import pytest

from geopol_tkg.huge_pages import huge_pages

COMMAND = """
import json, os, resource, sys
from geopol_tkg.huge_pages import restart_with_huge_pages

print("started", flush=True)
{before}
restart_with_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * (1 << 26)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), faults, os.getpid()]))
"""
PAGES = (1 << 26) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
needs_effect = pytest.mark.skipif(not huge_pages(), reason="no huge pages for who asks, or asked for already")


@pytest.fixture
def run(tmp_path):
    def run(*arguments, before="", **environment):
        """How often the command started, its process, and what it printed at last."""
        script = tmp_path / "command.py"
        script.write_text(COMMAND.format(before=before))
        clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], env=clean | environment, stdout=subprocess.PIPE, text=True
        )
        *starts, last = process.communicate()[0].splitlines()
        assert process.returncode == 0
        return len(starts), process.pid, json.loads(last)

    return run


@needs_effect
def test_a_command_starts_again_in_its_own_place_with_its_arguments(run):
    starts, pid, (arguments, tunables, faults, last_pid) = run("train", "--lr", "1e-3")
    assert (starts, arguments, last_pid) == (2, ["train", "--lr", "1e-3"], pid)
    assert tunables == "glibc.malloc.hugetlb=1"
    assert faults < PAGES / 2


@needs_effect
@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "-h"), ("--version",)])
def test_help_does_not_wait_for_it(run, arguments):
    assert run(*arguments)[0] == 1


@needs_effect
@pytest.mark.parametrize("given", ["", "glibc.malloc.tcache_count=0"])
def test_who_sets_the_variable_has_decided(run, given):
    starts, _, (_, tunables, faults, _) = run("train", GLIBC_TUNABLES=given)
    assert (starts, tunables) == (1, given)
    assert faults >= PAGES


@needs_effect
@pytest.mark.parametrize(
    "before", ["sys.argv = ['other', 'train']", "sys.argv[1:] = ['train']", "sys.executable = '/'"]
)
def test_a_program_that_is_not_the_command_and_one_that_cannot_start_again_go_on(run, before):
    starts, _, (_, tunables, _, _) = run("eval", before=before)
    assert (starts, tunables) == (1, None)


@pytest.mark.parametrize(
    ("library", "setting", "asks"),
    [
        ("glibc 2.35", "always [madvise] never", True),
        ("glibc 2.34", "always [madvise] never", False),
        ("glibc 2.36", "[always] madvise never", False),
        ("glibc 2.36", "always madvise [never]", False),
        ("glibc 2.36", None, False),
        ("", "always [madvise] never", False),
    ],
)
def test_they_are_asked_for_where_that_has_an_effect(monkeypatch, tmp_path, library, setting, asks):
    file = tmp_path / "enabled"
    if setting is not None:
        file.write_text(setting + "\n")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("geopol_tkg.huge_pages._SETTING", file)
    monkeypatch.setattr(os, "confstr", lambda _: library, raising=False)
    assert huge_pages() == ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if asks else {})
