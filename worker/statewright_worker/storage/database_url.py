"""The URL of the database: it is read by libpq's rules, and what breaks them is refused in one sentence."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from statewright.errors import ConfigurationError

VARIABLE: Final = "STATEWRIGHT_DATABASE_URL"
FORM: Final = f"{VARIABLE} must look like postgresql://user:password@host:5432/database"
MAX_PORT: Final = 65_535

# The parameters that the driver itself reads from a URL.
_DRIVERS: Final = frozenset(
    {
        "database",
        "dbname",
        "gsslib",
        "krbsrvname",
        "passfile",
        "password",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "user",
    }
)
_OURS: Final = frozenset({"application_name", "connect_timeout", "host", "options", "port", "target_session_attrs"})
_SETTINGS: Final[tuple[str, ...]] = ("application_name", "options")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_CHOICES: Final = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
}


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """What a URL says: which servers to try, in which order, and as which user."""

    dsn: str = field(repr=False)
    """User, password, database and TLS, as the driver reads them."""
    servers: tuple[tuple[str | None, int | None], ...]
    """Hosts and ports; for None the driver takes the same default as libpq."""
    server_settings: dict[str, str]
    """What PostgreSQL is told when a connection begins."""
    target: str
    """Which of several servers will do, in libpq's words."""
    connect_seconds: float | None
    """How long each server may take to let us in, if the URL says so."""


def parse_database_url(url: str) -> DatabaseUrl:
    """Return what `url` says. Raises ConfigurationError, without the URL's secrets, when that cannot be done."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in {"postgresql", "postgres"}:
        raise ConfigurationError(FORM)
    authority, path, query = _parts(rest)
    said = _parameters(query)
    login, at, hosts = authority.rpartition("@")
    servers = _servers(hosts, said.pop("host", ""), said.pop("port", ""))
    settings: dict[str, str] = {name: said.pop(name) for name in _SETTINGS if name in said}
    target = said.pop("target_session_attrs", "any")
    seconds = _seconds(said.pop("connect_timeout", ""))
    rest = f"?{urlencode(said, quote_via=quote)}" if said else ""
    return DatabaseUrl(f"postgresql://{login}{at}{path}{rest}", servers, settings, target, seconds)


def _parts(rest: str) -> tuple[str, str, str]:
    """Return user, password and hosts; the path; and the parameters."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    # A character that a URL gives a meaning ends the password too early, so that the @ behind it is found elsewhere.
    misplaced = "@" in path or ("@" not in authority and "@" in query and "=" not in query.partition("@")[0])
    if authority.count("@") > 1 or misplaced or "#" in rest:
        raise ConfigurationError(
            f"{VARIABLE}: in a user's name or password, these characters must be written as percent codes:"
            " @ as %40, / as %2F, ? as %3F, # as %23, % as %25"
        )
    return authority, slash + path, query


def _parameters(query: str) -> dict[str, str]:
    try:
        said = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise ConfigurationError(f"{VARIABLE}: what follows the ? must look like name=value&name=value") from None
    for name, value in said.items():
        _check(name, value)
    return said


def _check(name: str, value: str) -> None:
    known = _DRIVERS | _OURS
    if name not in known:
        # SQLAlchemy's name for it, in URLs that were written for SQLAlchemy.
        close = ["sslmode"] if name == "ssl" else get_close_matches(name, known, n=1)
        cure = f"is {close[0]} meant?" if close else "leave it out; PostgreSQL's own settings go into options=-c%20..."
        raise ConfigurationError(f"{VARIABLE}: the parameter {name!r} is not served; {cure}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigurationError(f"{VARIABLE}: {name} must be one of {', '.join(_CHOICES[name])}, not {value!r}")
    if name in _FILES and not _readable(Path(value)):
        raise ConfigurationError(f"{VARIABLE}: {name} must name a file that can be read, and {value!r} cannot")


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _seconds(value: str) -> float | None:
    """Return how long connecting may take; as in libpq, 0 or less and an empty value mean no limit."""
    try:
        seconds = int(value or 0)
    except ValueError:
        raise ConfigurationError(f"{VARIABLE}: connect_timeout must be whole seconds, not {value!r}") from None
    return float(seconds) if seconds > 0 else None


def _servers(authority: str, named: str, ports: str) -> tuple[tuple[str | None, int | None], ...]:
    """Return the host and port of each server: from the URL's beginning or, when it names none, from its parameters."""
    if authority:
        pairs = [_host_and_port(server) for server in authority.split(",")]
    else:
        pairs = [(host or None, None) for host in named.split(",")]
    general = [_port(port) for port in ports.split(",")]
    if len(general) not in {1, len(pairs)}:
        raise ConfigurationError(f"{VARIABLE}: {len(pairs)} hosts and {len(general)} ports; give one port, or one each")
    general = general * (len(pairs) // len(general))
    return tuple((host, own or given) for (host, own), given in zip(pairs, general, strict=True))


def _host_and_port(server: str) -> tuple[str | None, int | None]:
    if server.startswith("["):
        host, _, port = server.removeprefix("[").partition("]")
        return host, _port(port.removeprefix(":"))
    host, _, port = server.partition(":")
    return unquote(host) or None, _port(port)


def _port(text: str) -> int | None:
    if not text:
        return None
    if text.isascii() and text.isdigit() and 0 < int(text) <= MAX_PORT:
        return int(text)
    # The text is not quoted: it may be part of a password with a colon in the wrong place.
    raise ConfigurationError(f"{VARIABLE}: a port must be a number from 1 to {MAX_PORT}")
