"""The admin service: what operators may do to a operated server, and what they are told."""

from __future__ import annotations

import threading

import grpc
import pytest

import standin_bundles
from authority import Authority
from softkin.admin_client import AdminClient
from softkin.errors import (
    AuthenticationError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    SoftkinError,
    UnavailableError,
)
from softkin.v1 import admin_pb2, admin_pb2_grpc
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

METHODS = ("LoadDetector", "UnloadDetector", "SetLabel", "RemoveLabel")


def listed(admin):
    """Versions with their labels."""
    return {d.version: d.labels for d in admin.detectors()}


def served(operated, rows, **fields):
    """The version that answers."""
    return operated.score(rows(1), **fields).budget.version


def test_there_is_no_admin_service_unless_a_port_is_set(server):
    """Nor is it ever on the port of the scores."""
    stub = admin_pb2_grpc.DetectorAdminServiceStub(server.channel)

    for method in METHODS:
        with pytest.raises(grpc.RpcError) as e:
            getattr(stub, method)(getattr(admin_pb2, f"{method}Request")(), timeout=20)
        assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert server.server.admin_port == 0


def test_the_admin_port_scores_nothing(operated):
    """It lists what is loaded, and that is all."""
    with grpc.insecure_channel(f"127.0.0.1:{operated.server.admin_port}") as channel:
        for method in ("Score", "GetDetector"):
            with pytest.raises(grpc.RpcError) as e:
                channel.unary_unary(f"/softkin.v1.OutlierService/{method}")(b"", timeout=20)
            assert e.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_bundle_is_loaded_beside_what_serves(operated, admin, rows):
    """It is warm, described and watched before it answers; the default stays, and says so by its label."""
    info = admin.load("v2", ["canary"])

    assert (info.name, info.version, info.labels) == ("standin", "2", ("canary",))
    assert listed(admin) == {"1": ("stable",), "2": ("canary",)}
    assert served(operated, rows) == "1"
    answer = operated.score(rows(1), label="canary")
    assert (answer.budget.version, answer.outlier_score[0]) == ("2", 15 + 2000)
    labels = {"detector": "standin", "version": "2"}
    assert operated.sample("softkin_detector_info", **labels, digest=info.digest, device="cpu") == 1
    operated.until(lambda: operated.sample("softkin_drift_rows", **labels) == 1)
    assert operated.sample("softkin_detector_load_seconds_count") == 1
    assert 0 < operated.sample("softkin_detector_load_seconds_sum") < 60
    assert operated.sample("softkin_reloads_total", result="loaded") == 1
    assert operated.server._registry.loaded("standin", "2").warm_up_rows == 256


def test_a_version_loaded_as_stable_serves_at_once(operated, admin, rows):
    """And so does another name, without any label."""
    standin_bundles.write(operated.server._settings.bundle_root / "other", "1", name="other")

    admin.load("v2", ["stable", "canary"])
    admin.load("other")

    assert served(operated, rows, detector="standin") == "2"
    assert served(operated, rows, detector="other") == "1"
    assert [(d.name, d.labels) for d in admin.detectors()] == [
        ("other", ()),
        ("standin", ()),
        ("standin", ("canary", "stable")),
    ]


def test_the_same_bundle_again_changes_its_labels_only(admin, loading, operated):
    """Whatever its path: a retry after a lost answer is safe."""
    first = admin.load("v2", ["a"])
    second = admin.load("../root/v2", ["b"])

    assert (second.digest, second.labels) == (first.digest, ("a", "b"))
    assert len(loading.loaded) == 1
    assert operated.sample("softkin_reloads_total", result="unchanged") == 1


def test_another_bundle_of_a_loaded_version_is_refused(admin, root, loading, operated):
    """ALREADY_EXISTS, before anything but its manifest is read."""
    admin.load("v2")
    standin_bundles.write(root / "again", "2", shift=7)

    with pytest.raises(ConflictError, match=r"version '2' is loaded already, from another bundle: .* its own version"):
        admin.load("again", ["canary"])

    assert listed(admin) == {"1": ("stable",), "2": ()}
    assert len(loading.loaded) == 1
    assert operated.sample("softkin_reloads_total", result="failed") == 1


def test_without_a_root_nothing_is_loaded_but_labels_move(start, rows):
    """The admin service is of use without it."""
    operated = start(StandIn(version="1"), StandIn(version="2"), admin_port=0)

    with operated.admin() as admin:
        with pytest.raises(PreconditionError, match="this server loads no bundles: it runs without bundle_root"):
            admin.load("v2")
        admin.set_label("standin", "1", "stable")

    assert served(operated, rows) == "1"


@pytest.mark.parametrize("label", ["", "a b", "x" * 41])
def test_an_unfit_label_is_refused_before_the_bundle_is_read(admin, loading, label):
    """INVALID_ARGUMENT that names the field."""
    for field, call in (
        ("labels", lambda: admin.load("v2", ["fine", label])),
        ("label", lambda: admin.set_label("standin", "1", label)),
        ("label", lambda: admin.remove_label("standin", label)),
    ):
        with pytest.raises(InvalidInputError) as e:
            call()
        assert e.value.field == field

    assert loading.loaded == []
    assert listed(admin) == {"1": ()}


def test_promotion_and_rollback_move_a_label(operated, admin, rows):
    """Calls that name no version follow at once; who had the label is told."""
    admin.load("v2", ["canary"])

    moved = [(admin.set_label("standin", v, "stable"), served(operated, rows)) for v in ("2", "1", "2")]

    assert moved == [("1", "2"), ("2", "1"), ("1", "2")]
    assert admin.set_label("standin", "1", "previous") == ""
    assert admin.remove_label("standin", "canary") == "2"
    with pytest.raises(NotFoundError, match="no version carries the label 'canary'; labels: previous = 1, stable = 2"):
        admin.remove_label("standin", "canary")


def test_labels_are_shown_to_callers_too(operated, admin):
    """In GetDetector and ListDetectors, for the version they stand on."""
    admin.load("v2", ["canary", "blue"])

    info = operated.stub.GetDetector(pb.GetDetectorRequest(label="blue"), timeout=20).detector
    every = operated.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20).detectors

    assert (info.version, list(info.labels)) == ("2", ["blue", "canary"])
    assert [(d.version, list(d.labels)) for d in every] == [("1", ["stable"]), ("2", ["blue", "canary"])]


def test_a_version_is_unloaded_once_nothing_points_to_it(operated, admin, rows):
    """Its series go away, what it did stays counted, and it answers no more."""
    admin.load("v2", ["canary"])
    operated.score(rows(3), version="2")
    with pytest.raises(PreconditionError, match="version '2' carries canary; move its labels first"):
        admin.unload("standin", "2")
    with pytest.raises(PreconditionError, match="version '1' carries stable"):
        admin.unload("standin", "1")
    admin.remove_label("standin", "canary")
    before = operated.series(
        "softkin_detector_info", "softkin_alpha", "softkin_calibration", "softkin_bank", "softkin_d"
    )

    admin.unload("standin", "2")

    assert listed(admin) == {"1": ("stable",)}
    with pytest.raises(grpc.RpcError) as e:
        operated.score(rows(1), version="2")
    assert e.value.code() is grpc.StatusCode.NOT_FOUND
    after = operated.series(
        "softkin_detector_info", "softkin_alpha", "softkin_calibration", "softkin_bank", "softkin_d"
    )
    gone = before.keys() - after.keys()
    assert {name.partition("{")[0] for name in gone} >= {
        "softkin_detector_info",
        "softkin_alpha",
        "softkin_calibration_rows",
        "softkin_bank_rows",
        "softkin_drift_rows",
    }
    assert all("'version': '2'" in name for name in gone)
    assert not any("'version': '2'" in name for name in after)
    assert sum(v for name, v in operated.series("softkin_rows_total").items() if "'version': '2'" in name) == 3
    with pytest.raises(NotFoundError, match="no detector 'standin' version '2'; loaded: standin version 1"):
        admin.unload("standin", "2")


def test_the_last_version_of_a_name_stays(start, loading, root):
    """Its callers have nothing else."""
    message = "version '1' is the only one of 'standin'; load another one first"
    operated = start(StandIn(), load=loading, admin_port=0, bundle_root=root)

    with operated.admin() as admin, pytest.raises(PreconditionError, match=message):
        admin.unload("standin", "1")


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda a: a.unload("", "1"), "detector"),
        (lambda a: a.unload("standin", ""), "version"),
        (lambda a: a.set_label("", "1", "x"), "detector"),
        (lambda a: a.set_label("standin", "", "x"), "version"),
        (lambda a: a.remove_label("", "x"), "detector"),
    ],
)
def test_the_admin_service_takes_no_default(admin, call, field):
    """A forgotten name must not change the only detector there is."""
    with pytest.raises(InvalidInputError, match="empty; the admin service takes no default, name it") as e:
        call(admin)

    assert e.value.field == field


def test_a_bundle_that_cannot_honour_the_servers_alpha_is_refused(start, loading, root):
    """Although it is whole: 99 calibration rows certify nothing at 0.02."""
    operated = start(load=loading, guarantee="certified", alpha=0.02, admin_port=0, bundle_root=root)

    with operated.admin() as admin:
        with pytest.raises(PreconditionError, match=r"alpha: got 0.02, but 99 calibration rows certify nothing below"):
            admin.load("v2")
        assert admin.detectors() == []


def test_changes_are_made_one_at_a_time(operated, admin, loading, root):
    """What comes while a bundle is loading waits for it; one whose caller has left changes nothing."""
    loading.gate = threading.Event()
    loads = threading.Thread(target=admin.load, args=("v2",))
    loads.start()
    assert loading.entered.acquire(timeout=20)
    answered = threading.Event()

    def label():
        with operated.admin() as other:
            other.set_label("standin", "1", "late")
        answered.set()

    waits = threading.Thread(target=label)
    waits.start()
    target = f"127.0.0.1:{operated.server.admin_port}"
    # Not sooner: on a busy machine the call must have reached the server.
    with AdminClient(target, timeout_seconds=2) as hasty, pytest.raises(UnavailableError, match="no answer in time"):
        hasty.set_label("standin", "1", "hasty")
    meanwhile = (answered.is_set(), listed(admin))
    loading.gate.set()
    loads.join(timeout=20)
    waits.join(timeout=20)

    assert meanwhile == (False, {"1": ()})
    assert listed(admin) == {"1": ("late", "stable"), "2": ()}


def test_a_load_whose_caller_has_left_changes_nothing(operated, admin, loading):
    """What failed for the caller has not happened."""
    loading.gate = threading.Event()
    target = f"127.0.0.1:{operated.server.admin_port}"
    with AdminClient(target, timeout_seconds=2) as hasty:  # in time for it to arrive
        with pytest.raises(UnavailableError):
            hasty.load("v2")
        listed(hasty)  # travels behind the cancellation on the same connection: once answered, the server knows
    loading.gate.set()
    operated.until(lambda: operated.sample("softkin_reloads_total", result="failed") == 1)

    assert listed(admin) == {"1": ()}
    assert admin.load("v2").version == "2"


def test_admin_calls_are_counted_but_are_no_requests_for_scores(operated, admin):
    """They have their own labels; none of their errors is a rejected request."""
    admin.load("v2")
    with pytest.raises(NotFoundError):
        admin.unload("standin", "7")

    def handled(method, code):
        service = "softkin.v1.DetectorAdminService"
        labels = {"grpc_type": "UNARY", "grpc_service": service, "grpc_method": method, "grpc_code": code}
        return operated.sample("grpc_server_handled_total", **labels)

    operated.until(lambda: handled("UnloadDetector", "NOT_FOUND") == 1)
    assert handled("LoadDetector", "OK") == 1
    assert set(operated.series("softkin_rejected_total").values()) == {0.0}


def test_a_fault_of_a_bundle_stays_a_secret_of_the_server_for_callers_of_scores(start, rows):
    """INTERNAL with a log id there, whatever the admin service tells."""
    from softkin.errors import BundleError

    operated = start(StandIn(failure=BundleError("/secret/path: damaged")))

    with pytest.raises(grpc.RpcError) as e:
        operated.score(rows(1))

    assert e.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in e.value.details()


def test_a_server_that_starts_makes_no_changes_yet(start, loading, root):
    """The call waits until the server is ready, then it is made."""
    standin_bundles.write(root / "v1", "1")
    loading.gate = threading.Event()
    operated = start(ready=False, load=loading, bundles=(root / "v1",), admin_port=0, bundle_root=root)
    starting = threading.Thread(target=operated.server.make_ready)
    starting.start()
    assert loading.entered.acquire(timeout=20)
    found = []

    def load():
        with operated.admin() as admin:
            found.append(admin.load("v2").version)

    loads = threading.Thread(target=load)
    loads.start()
    loading.gate.set()
    starting.join(timeout=20)
    loads.join(timeout=20)

    assert found == ["2"]
    assert [p.name for p in loading.loaded] == ["v1", "v2"]


def test_a_change_that_is_asked_for_before_the_start_waits_for_it_too(start, loading, root):
    """Made first, it would be in the way of the bundles that the server was started with."""
    operated = start(ready=False, load=loading, bundles=(root / "v2",), admin_port=0, bundle_root=root)
    found = []

    def load():
        with operated.admin() as admin:
            found.append(admin.load("v2", ["canary"]).labels)

    loads = threading.Thread(target=load)
    loads.start()
    loads.join(timeout=0.5)  # it would be long done
    waited = loads.is_alive()
    operated.server.make_ready()
    loads.join(timeout=20)

    assert waited
    assert found == [("canary",)]
    assert len(loading.loaded) == 1


def test_a_stopping_server_makes_no_changes(operated, admin):
    """UNAVAILABLE, or no answer at all once the port is closed."""
    operated.server._loader.close()

    with pytest.raises(UnavailableError, match="the server is stopping; nothing was changed"):
        admin.load("v2")


def test_a_taken_admin_port_is_an_error_that_names_it_and_frees_the_others(start, operated):
    """Never a second server beside the first."""
    with pytest.raises(SoftkinError, match=r"cannot listen on port \d+ of 127.0.0.1.*--admin-port; .*--admin-host"):
        start(StandIn(), ready=False, admin_port=operated.server.admin_port)


def test_the_admin_port_is_guarded_like_that_of_the_scores(start, tmp_path):
    """The same certificate and the same tokens."""
    ca, tokens = Authority(tmp_path), tmp_path / "tokens"
    tokens.write_text("right\n")
    operated = start(StandIn(), admin_port=0, token_file=tokens, **ca.issue("server"))

    for options, error in [({}, UnavailableError), ({"tls_ca": ca.file}, AuthenticationError)]:
        with operated.admin(**options) as admin, pytest.raises(error):
            admin.set_label("standin", "1", "x")
    with operated.admin(tls_ca=ca.file, token="wrong") as admin, pytest.raises(AuthenticationError):
        admin.detectors()
    with operated.admin(tls_ca=ca.file, token="right") as admin:
        admin.set_label("standin", "1", "x")
        assert listed(admin) == {"1": ("x",)}


def test_where_no_further_thread_can_be_started_the_admin_service_answers(admin, loading, monkeypatch):
    """Its threads are there from the start: a call that needs one more would end the thread that takes all calls."""
    loading.gate = threading.Event()
    changing = threading.Thread(target=admin.load, args=("v2",))
    changing.start()
    assert loading.entered.acquire(timeout=20)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no")))

    assert listed(admin) == {"1": ()}
    loading.gate.set()
    changing.join(timeout=20)
