"""What the API server is asked."""

from kdns.cluster.ask import ALL, PATHS, Asker, Request, Selection
from kdns.cluster.objects import IMPORTS, KINDS


def test_every_kind_has_its_path():
    assert set(PATHS) == {*KINDS, *IMPORTS}


def test_pages():
    asker = Asker("services", ALL)
    assert asker.page(100, "", 0.5) == Request("list", "/api/v1/services?limit=100", 0.5)
    assert asker.page(7, "a/b=", 0.0).target == "/api/v1/services?limit=7&continue=a%2Fb%3D"
    assert asker.probe(1.0) == Request("list", "/api/v1/services?limit=1", 1.0)


def test_watches():
    asker = Asker("endpointslices", ALL)
    path = "/apis/discovery.k8s.io/v1/endpointslices?watch=true&allowWatchBookmarks=true&timeoutSeconds=300"
    streamed = f"{path}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
    assert asker.stream(300, 0.0) == Request("watch", streamed, 0.0)
    assert asker.changes("12", 300, 0.0) == Request("watch", f"{path}&resourceVersion=12", 0.0)


def test_selectors_go_with_everything_but_the_probe():
    asker = Asker("pods", Selection("app in (a, b)", "status.phase!=Failed"))
    chosen = "labelSelector=app+in+%28a%2C+b%29&fieldSelector=status.phase%21%3DFailed"
    for request in (asker.page(1, "", 0), asker.stream(1, 0), asker.changes("1", 1, 0)):
        assert request.target.startswith(f"/api/v1/pods?{chosen}&")
    assert asker.probe(0).target == "/api/v1/pods?limit=1"


def test_one_object():
    assert Asker("services", ALL).one("dev", "web").target == (
        "/api/v1/namespaces/dev/services?fieldSelector=metadata.name%3Dweb"
    )
    assert Asker("namespaces", ALL).one("", "dev").target == "/api/v1/namespaces?fieldSelector=metadata.name%3Ddev"
    assert (
        Asker("importedslices", ALL)
        .one("dev", "web")
        .target.startswith("/apis/discovery.k8s.io/v1/namespaces/dev/endpointslices?")
    )
    asker = Asker("endpointslices", Selection("a=b", "status.phase!=Failed"))
    assert asker.one("a/b", "x").target == (
        "/apis/discovery.k8s.io/v1/namespaces/a%2Fb/endpointslices?labelSelector=a%3Db"
        "&fieldSelector=metadata.name%3Dx%2Cstatus.phase%21%3DFailed"
    )
