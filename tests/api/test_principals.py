"""Principals: whose token a caller has, how often the caller may call, and which session ids it may use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.api.caller import NOBODY, Caller, Principal
from service.api.principals import Principals, TokenFileError, Unauthenticated, new_token
from service.errors import ForbiddenError, InvalidFieldError, RateLimitedError, UnauthenticatedError
from tests.certificates import Authority

AUTHORITY = Authority()
ALICE, ALICE_2, BOB = "alices-token", "alices-other-token", "bobs-token"


class Clock:
    """Monotonic time in seconds, set by the test."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def write(path: Path, text: str) -> None:
    """Replaces the file with a new one, so that its inode changes, as tools do that replace secrets."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, path)


def entry(name: str, *tokens: str, more: str = "") -> str:
    return f"[principals.{name}]\ntoken_sha256 = {[digest(token) for token in tokens]}\n{more}\n"


def named(name: str, *names: str) -> str:
    return f"[principals.{name}]\ncertificate_names = {list(names)}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    write(path, entry("alice", ALICE, ALICE_2, more="admin = true") + entry("bob", BOB, more="max_sessions = 3"))
    return path


def no_certificate() -> dict[str, list[bytes]]:
    """Returns what a wire knows of a client without a certificate."""
    return {}


def no_error(error: TokenFileError) -> None:
    raise AssertionError(error)


def test_a_principal_is_found_by_any_of_its_tokens(path: Path) -> None:
    principals = Principals(path, no_error)
    alice = principals.find(f"Bearer {ALICE}", no_certificate)
    assert alice is principals.find(f"bearer {ALICE_2}", no_certificate), "limits count for all of its tokens"
    assert alice.principal == Principal("alice", is_admin=True)
    assert principals.find(f"Bearer {BOB}", no_certificate).principal == Principal("bob", max_sessions=3)


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "the call has no authorization"),
        ("", "the authorization header has another scheme"),
        (f"Basic {ALICE}", "the authorization header has another scheme"),
        (ALICE, "the authorization header has another scheme"),
        ("Bearer ", "the token is unknown"),
        ("Bearer alices-toke", "the token is unknown"),
        (f"Bearer {digest(ALICE)}", "the token is unknown"),
        ("Bearer é", "the token is unknown"),
    ],
)
def test_unknown_callers_are_refused_without_quoting_their_token(
    path: Path, authorization: str | None, message: str
) -> None:
    with pytest.raises(UnauthenticatedError, match=message) as refusal:
        Principals(path, no_error).find(authorization, no_certificate)
    assert "alice" not in refusal.value.message


def test_every_hash_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is the standard library's, and it does not stop at the matching hash."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("service.api.principals.secrets.compare_digest", compare)
    Principals(path, no_error).find(f"Bearer {ALICE}", no_certificate)
    known = [bytes.fromhex(digest(token)) for token in (ALICE, ALICE_2, BOB)]
    assert compared == [(one, known[0]) for one in known]


def test_the_file_is_read_again_when_it_changes(path: Path) -> None:
    clock = Clock()
    changes: list[float] = []
    principals = Principals(path, no_error, clock, on_change=lambda: changes.append(clock.now_s))
    bob = principals.find(f"Bearer {BOB}", no_certificate)
    write(path, entry("bob", "another", more="max_sessions = 5"))
    assert principals.find(f"Bearer {BOB}", no_certificate) is bob, "it is looked at once a second at most"
    clock.now_s += 1.0
    with pytest.raises(UnauthenticatedError):
        principals.find(f"Bearer {BOB}", no_certificate)
    assert principals.find("Bearer another", no_certificate) is bob, "who keeps its count of requests"
    assert bob.principal.max_sessions == 5
    assert changes == [clock.now_s]


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: write(path, "[")], ids=["gone", "no TOML"])
def test_an_invalid_new_file_is_reported_and_the_old_one_stays_in_use(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    clock, errors = Clock(), list[TokenFileError]()
    principals = Principals(path, errors.append, clock)
    spoil(path)
    for _ in range(3):
        clock.now_s += 1.0
        principals.find(f"Bearer {BOB}", no_certificate)
    assert principals.find(f"Bearer {BOB}", no_certificate).principal.name == "bob"
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"principals: is missing: the file has a table \[principals.NAME\] for each principal"),
        ("[principals.x]", "principals.x: a principal needs token_sha256, certificate_names or both"),
        ("[principals.x]\ncertificate_names = []", "principals.x.certificate_names: List should have at least 1 item"),
        (
            named("x", "*.y"),
            r"principals.x.certificate_names.0: '\*.y' is not a valid name of a certificate: expected a URI such",
        ),
        (named("x", "y") + named("z", "a", "y"), "toml: principals x and z both have the certificate name 'y'"),
        ("[principals.x]\ntoken_sha256 = []", "principals.x.token_sha256: List should have at least 1 item"),
        (
            "[principals.x]\ntoken_sha256 = ['hush']",
            "principals.x.token_sha256.0: it must be the SHA-256 of a token, 64 hexadecimal digits, as",
        ),
        ("[app]\ntoken_sha256 = []", r"app: is unknown: the file has a table \[principals.NAME\]"),
        (entry("x", "y", more="max_sessions = -1"), "principals.x.max_sessions: Input should be greater than or equal"),
        (entry("x", "y", more="max_requests_per_s = 0"), "principals.x.max_requests_per_s: Input should be greater"),
        (
            entry("x", "y", more="is_admin = true"),
            "principals.x.is_admin: unknown field: expected one of token_sha256, certificate_names, max_sessions,",
        ),
        (entry('"a/b"', "y"), "principals.a/b"),
        ("[", "is not valid TOML"),
        ("\udcff", "is not valid TOML"),
    ],
)
def test_the_error_of_an_invalid_file_names_the_field_and_shows_no_hash(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "tokens.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TokenFileError, match=message) as refusal:
        Principals(path, no_error)
    assert "hush" not in str(refusal.value)
    assert digest("y") not in str(refusal.value)


def test_a_missing_token_file_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="cannot be read: No such file"):
        Principals(tmp_path / "none", no_error)


def test_a_new_token_is_long_and_never_the_same() -> None:
    tokens = {new_token()[0] for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43, "32 random bytes"
    token, of_it = new_token()
    assert of_it == digest(token)


def test_without_a_token_file_every_caller_may_do_everything() -> None:
    assert Unauthenticated().find(None, no_certificate) is NOBODY
    NOBODY.check_admin("load")
    NOBODY.admit()
    assert NOBODY.key("a") == NOBODY.any_key("a") == NOBODY.new_key("a") == NOBODY.shown("a") == "a"
    assert NOBODY.new_key("") == ""


def test_the_rate_limit_allows_bursts_of_one_second() -> None:
    clock = Clock()
    caller = Caller(Principal("bob", max_requests_per_s=4.0), clock)

    for waited_s, count in ((0.0, 4), (0.5, 2), (100.0, 4)):
        clock.now_s += waited_s
        for _ in range(count):
            caller.admit()
        with pytest.raises(RateLimitedError) as refusal:
            caller.admit()
        assert refusal.value.retry_delay_s == 0.25


def test_less_than_one_request_a_second_is_a_rate_too() -> None:
    clock = Clock()
    caller = Caller(Principal("bob", max_requests_per_s=0.1), clock)
    caller.admit()
    clock.now_s += 9.0
    with pytest.raises(RateLimitedError, match=r"principal 'bob' may send 0\.1 requests per second"):
        caller.admit()
    clock.now_s += 1.1
    caller.admit()


def test_principals_have_separate_session_ids() -> None:
    alice, bob = Caller(Principal("alice", is_admin=True)), Caller(Principal("bob"))
    assert alice.key("s") != bob.key("s")
    assert bob.new_key("") != bob.new_key("")
    assert bob.new_key("").startswith("bob/")
    assert bob.shown(bob.key("s")) == "s"
    assert alice.shown(bob.key("s")) == "bob/s"
    assert alice.any_key("bob/s") == bob.key("s")


@pytest.mark.parametrize("session_id", ["alice/s", "/s", "bob/"])
def test_only_an_admin_reaches_sessions_of_others_by_a_slash(session_id: str) -> None:
    bob, nobody = Caller(Principal("bob")), NOBODY
    for caller in (bob, nobody):
        for key in (caller.key, caller.any_key, caller.new_key):
            with pytest.raises(InvalidFieldError, match="must be 1 to 128 of the characters"):
                key(session_id)


def test_only_admins_may_call_admin_methods() -> None:
    Caller(Principal("alice", is_admin=True)).check_admin("load")
    with pytest.raises(ForbiddenError, match="load needs an admin: principal 'bob' is not one"):
        Caller(Principal("bob")).check_admin("load")


@pytest.mark.parametrize(
    "session_id", ["", "x" * 129, "a\0b", "a b", "\0", "é", pytest.param("x" * 4_000_000, id="4 MB"), "/", "b/", "/b"]
)
@pytest.mark.parametrize("principal", [Principal(""), Principal("bob"), Principal("root", is_admin=True)])
def test_an_id_that_no_session_can_have_is_refused_before_anybody_looks_for_it(
    principal: Principal, session_id: str
) -> None:
    caller = Caller(principal)
    names = [caller.key, caller.any_key] + ([caller.new_key] if session_id else [])
    for name in names:
        with pytest.raises(InvalidFieldError, match="must be 1 to 128 of the characters") as refusal:
            name(session_id, field="fork_session_id")
        assert refusal.value.field == "fork_session_id"
        assert len(refusal.value.message) < 800


def test_a_new_session_may_come_without_an_id() -> None:
    assert Caller(Principal("")).new_key("") == ""
    assert Caller(Principal("bob")).new_key("").startswith("bob/")


def test_the_file_is_read_at_once_when_it_is_asked_for(path: Path) -> None:
    errors = list[TokenFileError]()
    principals = Principals(path, errors.append, Clock())
    write(path, entry("carol", "carols"))
    assert principals.reload()
    assert principals.find("Bearer carols", no_certificate).principal.name == "carol"
    write(path, "[")
    assert not principals.reload()
    assert len(errors) == 1
    assert principals.find("Bearer carols", no_certificate).principal.name == "carol", "what it said before holds"


def client(**names: list[str]) -> Callable[[], dict[str, list[bytes]]]:
    """Returns a function that gives what a wire knows of a client whose certificate has these names."""
    return lambda: {"x509_pem_cert": [AUTHORITY.issue(**names).certificate]}


@pytest.fixture
def by_name(path: Path) -> Path:
    text = named("alice", "spiffe://corp/alice", "alice.example.com")
    write(path, text + entry("bob", BOB, more='certificate_names = ["CN=bob"]') + named("carol", "carol.example.com"))
    return path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"uris": ["spiffe://corp/alice"]}, "alice"),
        ({"dns": ["alice.example.com"]}, "alice"),
        ({"common": ["bob"]}, "bob"),
        ({"common": ["bob"], "dns": ["carol.example.com"]}, "carol"),
        ({"common": ["bob"], "dns": ["carol.example.com"], "uris": ["urn:x", "spiffe://corp/alice"]}, "alice"),
        ({"dns": ["carol.example.com", "alice.example.com"]}, "carol"),
        ({"common": ["bob"], "dns": ["unknown.example.com"]}, "bob"),
    ],
)
def test_without_a_token_the_first_known_name_of_the_certificate_decides(
    by_name: Path, names: dict[str, list[str]], expected: str
) -> None:
    principals = Principals(by_name, no_error, has_client_certificates=True)
    assert principals.find(None, client(**names)).principal.name == expected


def test_a_token_takes_precedence_over_a_certificate(by_name: Path) -> None:
    principals = Principals(by_name, no_error, has_client_certificates=True)
    alice = client(uris=["spiffe://corp/alice"])
    assert principals.find(f"Bearer {BOB}", alice) is principals.find(None, client(common=["bob"])), (
        "limits count for both"
    )
    with pytest.raises(UnauthenticatedError, match="the token is unknown"):
        principals.find(f"Bearer {ALICE}", alice)
    with pytest.raises(UnauthenticatedError, match="the authorization header has another scheme"):
        principals.find("Basic x", alice)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (
            client(dns=["dave.example.com"], common=["dave"]),
            r"certificate, \['dave.example.com', 'CN=dave'\]: send",
        ),
        (client(dns=[f"{'d' * 60}-{i}.example.com" for i in range(500)]), r", \.\.\. 500 in all\]: send `Bearer"),
        (
            client(common=["bob", "alice"]),
            "has no URI, no DNS name and no single common name: send `Bearer TOKEN`",
        ),
        (no_certificate, "has no URI, no DNS name and no single common name"),
    ],
)
def test_an_unknown_certificate_is_refused_with_its_names(
    by_name: Path, context: Callable[[], dict[str, list[bytes]]], message: str
) -> None:
    principals = Principals(by_name, no_error, has_client_certificates=True)
    with pytest.raises(
        UnauthenticatedError, match=f"^the call has no authorization header, and .*{message}"
    ) as refusal:
        principals.find(None, context)
    assert refusal.value.message.endswith("a name that is in a principal's certificate_names")
    assert len(refusal.value.message) < 1000


def test_names_are_read_again_when_the_file_changes(by_name: Path) -> None:
    clock, bob = Clock(), client(common=["bob"])
    principals = Principals(by_name, no_error, clock, has_client_certificates=True)
    found = principals.find(None, bob)
    write(by_name, entry("bob", BOB) + named("carol", "CN=bob"))
    clock.now_s += 1.0
    assert principals.find(None, bob).principal.name == "carol"
    assert principals.find(f"Bearer {BOB}", no_certificate) is found
    with pytest.raises(UnauthenticatedError):
        principals.find(None, client(dns=["carol.example.com"]))


def test_certificate_names_need_verified_client_certificates(by_name: Path) -> None:
    message = (
        "principals.alice.certificate_names: this server does not request client certificates: set tls_client_ca_file"
    )
    with pytest.raises(TokenFileError, match=message):
        Principals(by_name, no_error)
    text = by_name.read_text()
    write(by_name, entry("bob", BOB))
    clock, errors = Clock(), list[TokenFileError]()
    principals = Principals(by_name, errors.append, clock)
    write(by_name, text)
    clock.now_s += 1.0
    assert principals.find(f"Bearer {BOB}", no_certificate).principal.name == "bob"
    assert message in str(errors[0])
    with pytest.raises(UnauthenticatedError, match=r"expected `Bearer TOKEN`$"):
        principals.find(None, client(common=["bob"]))
