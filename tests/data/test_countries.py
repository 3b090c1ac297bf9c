"""Countries that labels name."""

import tarfile

from geopol_tkg.data.countries import Countries


def of(labels, **more):
    countries = Countries.from_labels(labels, **more)
    return countries.names, [countries.names[i] if i >= 0 else None for i in countries.of_entity]


def test_brackets_and_labels_of_their_own():
    labels = ["Police (Nigeria)", "Nigeria", "Barack Obama", "Police (Iran)", "Citizen (Nigeria)", "Holy See (Vatican)"]
    assert of(labels) == (("Nigeria",), ["Nigeria", "Nigeria", None, None, "Nigeria", None])


def test_letters_of_codes():
    labels = ["USAGOV", "NGA", "USA", "COPSPY", "NGACOPELI", "FRA"]
    assert of(labels, entity_kind="code") == (("NGA", "USA"), ["USA", "NGA", "USA", None, "NGA", None])
    assert of(labels) == ((), [None] * 6)


def test_no_labels_no_countries():
    assert of([]) == ((), [])


def test_countries_of_icews14s(shared_data):
    with tarfile.open(shared_data / "benchmarks" / "ICEWS14s.tar.xz") as archive:
        file = archive.extractfile("ICEWS14s/entity2id.txt")
        assert file is not None
        labels = [line.split("\t")[0] for line in file.read().decode().splitlines()]
    countries = Countries.from_labels(labels)
    assert len(countries.names) == 253
    assert {"China", "South_Africa", "Nigeria"} <= set(countries.names)
    assert (countries.of_entity >= 0).mean() > 0.55
