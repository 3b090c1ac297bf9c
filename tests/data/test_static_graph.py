"""Words and edges that labels imply."""

import tarfile

from geopol_tkg.data.static_graph import COUNTRY, IS_A, ITSELF, StaticGraph


def test_roles_countries_and_labels_of_their_own():
    graph = StaticGraph.from_labels(["Police (Nigeria)", "Nigeria", "Police (Iran)", "Holy See (Vatican (City))", "(x"])
    assert graph.words == ("Police", "Nigeria", "Iran", "Holy See", "Vatican (City", "(x")
    assert graph.edges.tolist() == [
        [0, IS_A, 0],
        [0, COUNTRY, 1],
        [1, ITSELF, 1],
        [2, IS_A, 0],
        [2, COUNTRY, 2],
        [3, IS_A, 3],
        [3, COUNTRY, 4],
        [4, ITSELF, 5],
    ]
    assert graph.sizes() == {"num_words": 6, "num_static_edges": 8}


def test_no_labels_no_words():
    graph = StaticGraph.from_labels([])
    assert graph.words == ()
    assert graph.edges.shape == (0, 3)


def test_published_words_of_icews14s(shared_data):
    with tarfile.open(shared_data / "benchmarks" / "ICEWS14s.tar.xz") as archive:
        file = archive.extractfile("ICEWS14s/entity2id.txt")
        assert file is not None
        labels = [line.split("\t")[0] for line in file.read().decode().splitlines()]
    assert StaticGraph.from_labels(labels).sizes() == {"num_words": 3499, "num_static_edges": 11_349}
