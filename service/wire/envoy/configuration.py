"""Makes Envoy's configuration from the settings. Pure.

Everything that is not set here has Envoy's default: https://www.envoyproxy.io/docs/envoy/v1.39.3.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

from service.settings import Settings
from service.wire.envoy.folder import SOCKET
from service.wire.marks import CONNECT, UNARY

MARK = "changed"
"""The file that is moved into the launcher's folder to make Envoy read the certificates again."""
_TYPES = "type.googleapis.com/envoy."
_WINDOW_BYTES = 64 * 1024
"""The window of one stream: bytes that a client may send before they are read, and that Envoy keeps for a client that
does not read."""
_CONNECTION_WINDOW_BYTES = 1024 * 1024
_BUFFER_BYTES = 32 * 1024
"""Bytes of responses that wait for one reader, above which Envoy makes the server wait."""
_WHOLE = {"regex": "(?i)application/(json|proto)( *;.*)?"}
"""Content types of Connect's unary calls."""
_CONNECT = r"application/(json|proto|connect\+).*"
"""Content types of all Connect calls."""
_FAULT = "FI"
"""The response flag of answers from Envoy's fault filter."""
_SPELLED = "([!-$&-~]|%[0-7])*"
"""Paths that are UTF-8 both as they are and when decoded. pyvoy 1.3.0 answers no other paths."""
_TEXT_OVER_BYTES = 4
"""How many times larger JSON is than protocol buffers, because numbers are text."""
_PENDING_CALLS = 10_000
"""Calls of one connection above the server's own limit, so that the server refuses them, with a reason."""
_SPARE_FILES = 256
"""File descriptors that are reserved for other uses than connections."""


def configuration(
    settings: Settings, folder: Path, *, module: str, application: str, where: list[tuple[str, int]]
) -> dict[str, Any]:
    """Returns the configuration. folder: the launcher's; module: path of pyvoy's module; application: the object that
    pyvoy loads, as `module:name`; where: the addresses and ports to listen on, at least one."""
    first, *others = where
    listener: dict[str, Any] = {
        "name": "services",
        "address": _address(*first),
        "additional_addresses": [{"address": _address(*other)} for other in others],
        "enable_reuse_port": False,  # otherwise a second server could share a port in use, without an error
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(settings, module, application),
                    }
                ],
                **_tls(settings, folder),
            }
        ],
    }
    return {
        "node": {"id": "carousel", "cluster": "carousel"},  # needed for secrets from files
        "admin": {"address": {"pipe": {"path": str(folder / SOCKET), "mode": 0o600}}},
        "static_resources": {"listeners": [listener], "clusters": [{"name": "nowhere", "connect_timeout": "1s"}]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPES}extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": max(64, _max_files() - _SPARE_FILES),
                    },
                }
            ]
        },
    }


def _connection_manager(settings: Settings, module: str, application: str) -> dict[str, Any]:
    return {
        "@type": f"{_TYPES}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "services",
        "codec_type": "AUTO",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": True,
        "skip_xff_append": True,
        # A client's own header about its certificate is always removed. The server receives the whole certificate,
        # because Envoy does not escape the names in it: a name that contains `;URI=` would look like two names.
        "forward_client_cert_details": "SANITIZE_SET" if settings.tls_client_ca_file else "SANITIZE",
        **({"set_current_client_cert_details": {"cert": True}} if settings.tls_client_ca_file else {}),
        "stream_idle_timeout": "0s",  # a session may be idle for hours
        "request_timeout": "0s",
        "request_headers_timeout": "10s",
        "max_request_headers_kb": min(8192, settings.max_metadata_bytes // 1024 + 8),
        "common_http_protocol_options": {"idle_timeout": "0s", "max_headers_count": 1000},
        "http_protocol_options": {"enable_trailers": True},  # for the status of gRPC calls over HTTP/1.1
        "http2_protocol_options": {
            "initial_stream_window_size": _WINDOW_BYTES,
            "initial_connection_window_size": _CONNECTION_WINDOW_BYTES,
            "max_concurrent_streams": settings.max_calls + _PENDING_CALLS,
            # to notice a client that has disappeared
            "connection_keepalive": {"interval": "30s", "timeout": "10s"},
            # an error of one stream ends only this stream (RFC 9113, 8.1.1); by default it ends the whole connection
            "override_stream_error_on_invalid_http_message": True,
        },
        "local_reply_config": {
            "mappers": [
                {
                    "filter": {"response_flag_filter": {"flags": [_FAULT]}},
                    "body": {"inline_string": "no method has this path: paths of methods are ASCII"},
                }
            ]
        },
        "route_config": {"virtual_hosts": [_virtual_host(settings)]},
        "http_filters": [_path_filter(), *_browser_filters(settings), _application_filter(module, application)],
    }


def _virtual_host(settings: Settings) -> dict[str, Any]:
    host: dict[str, Any] = {
        "name": "services",
        "domains": ["*"],
        # No request reaches a route's cluster. But without a real route, the CORS filter adds no headers.
        "routes": [
            {
                # Connect's bridge buffers unary requests whole. Other requests are streamed.
                "match": {"prefix": "/", "headers": [{"name": "content-type", "string_match": {"safe_regex": _WHOLE}}]},
                "route": {"cluster": "nowhere"},
                "request_body_buffer_limit": _TEXT_OVER_BYTES * settings.max_message_bytes,
            },
            {"match": {"prefix": "/"}, "route": {"cluster": "nowhere"}},
        ],
    }
    if settings.allowed_origins:
        host["typed_per_filter_config"] = {
            "envoy.filters.http.cors": {
                "@type": f"{_TYPES}extensions.filters.http.cors.v3.CorsPolicy",
                "allow_origin_string_match": [{"exact": origin} for origin in settings.allowed_origins],
                "allow_methods": "POST",
                "allow_headers": "authorization, content-type, connect-protocol-version, connect-timeout-ms,"
                " grpc-timeout, traceparent, tracestate, x-grpc-web, x-request-id, x-session-id,"
                " x-user-agent",
                "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, carousel-error-bin,"
                " x-request-id, trailer-x-request-id",
                "max_age": "7200",
            }
        }
    return host


def _path_filter() -> dict[str, Any]:
    """Returns a filter that answers requests whose paths pyvoy cannot handle."""
    other = {"name": ":path", "string_match": {"safe_regex": {"regex": _SPELLED}}, "invert_match": True}
    abort = {"http_status": 404, "percentage": {"numerator": 100}}
    return _filter("fault", "fault.v3.HTTPFault", headers=[other], abort=abort)


def _browser_filters(settings: Settings) -> list[dict[str, Any]]:
    """Returns the filters that translate gRPC-Web and Connect to gRPC before the server receives a call."""
    filters = [
        _filter("grpc_web", "grpc_web.v3.GrpcWeb"),
        # Envoy's filters compare letters, but a content type may be written in any case.
        _only_where(_posts_of("(?i)application/json(; ?charset=utf-8)?"), _setting("content-type", "application/json")),
        _only_where(_posts_of(_CONNECT), _setting(CONNECT, "-")),  # stays if the request names no version
        _only_where(_posts_of(_CONNECT), _setting(CONNECT, "%REQ(CONNECT-PROTOCOL-VERSION)%")),
        # These content types are Connect's even without its version header, as in a request typed into `curl`.
        _only_where(_posts_of("application/(json|proto).*"), _setting("connect-protocol-version", "1")),
        _only_where(_posts_of(_WHOLE["regex"]), _setting(UNARY, "1")),
        # Connect allows 10 digits, Envoy 12. A malformed header stays for `why_malformed`, which drops the `+`.
        _only_where(
            _has("connect-timeout-ms", {"safe_regex": {"google_re2": {}, "regex": "[0-9]{11,}"}}),
            _setting("connect-timeout-ms", "%REQ(CONNECT-TIMEOUT-MS)%+"),
        ),
        # Unrestricted, it would also turn a GET, and any POST with a certain query, into calls: any web page can send
        # these.
        _only_where(_posts_of(_CONNECT), _filter("connect_grpc_bridge", "connect_grpc_bridge.v3.FilterConfig")),
    ]
    return [_filter("cors", "cors.v3.Cors"), *filters] if settings.allowed_origins else filters


def _filter(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    typed = {"@type": f"{_TYPES}extensions.filters.http.{kind}", **fields}
    return {"name": f"envoy.filters.http.{name}", "typed_config": typed}


def _setting(header: str, value: str) -> dict[str, Any]:
    """Returns a filter that sets a header of the request."""
    append = {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return _filter(
        "header_mutation", "header_mutation.v3.HeaderMutation", mutations={"request_mutations": [{"append": append}]}
    )


def _only_where(matches: dict[str, Any], http_filter: dict[str, Any]) -> dict[str, Any]:
    """Returns a filter that applies only to requests that match."""
    skip = {
        "name": "skip",
        "typed_config": {"@type": f"{_TYPES}extensions.filters.common.matcher.action.v3.SkipFilter"},
    }
    matcher = {"predicate": {"not_matcher": matches}, "on_match": {"action": skip}}
    return {
        "name": f"{http_filter['name']}.where",
        "typed_config": {
            "@type": f"{_TYPES}extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": http_filter,
            "xds_matcher": {"matcher_list": {"matchers": [matcher]}},
        },
    }


def _posts_of(content_type: str) -> dict[str, Any]:
    """Returns a matcher for POST requests of a content type. content_type: a regular expression."""
    has_type = _has("content-type", {"safe_regex": {"google_re2": {}, "regex": content_type}})
    return {"and_matcher": {"predicate": [_has(":method", {"exact": "POST"}), has_type]}}


def _has(header: str, match: dict[str, Any]) -> dict[str, Any]:
    typed = {"@type": f"{_TYPES}type.matcher.v3.HttpRequestHeaderMatchInput", "header_name": header}
    return {"single_predicate": {"input": {"name": header, "typed_config": typed}, "value_match": match}}


def _application_filter(module: str, application: str) -> dict[str, Any]:
    given = {"app": application, "interface": "asgi", "root_path": "", "lifespan": True}
    return {
        "name": "pyvoy",
        "typed_config": {
            "@type": f"{_TYPES}extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"module": {"local": {"filename": module}}},
            "filter_name": "pyvoy",
            "terminal_filter": True,
            "filter_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": json.dumps(given)},
        },
    }


def _tls(settings: Settings, folder: Path) -> dict[str, Any]:
    """Returns the listener's TLS part. It names files, which Envoy reads again when MARK is moved into the folder."""
    if settings.tls_cert_file is None:
        return {}
    context: dict[str, Any] = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": [_secret("certificate", folder)],
    }
    if settings.tls_client_ca_file is not None:
        context["validation_context_sds_secret_config"] = _secret("authorities", folder)
    return {
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_TYPES}extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": context,
                "require_client_certificate": settings.tls_client_ca_file is not None,
            },
        }
    }


def secrets(settings: Settings, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the files for the launcher's folder that tell Envoy where the certificates are, by file name."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return {}
    watched = {"path": str(folder)}
    found: dict[str, dict[str, Any]] = {
        "certificate": {
            "tls_certificate": {
                "certificate_chain": {"filename": str(settings.tls_cert_file.absolute())},
                "private_key": {"filename": str(settings.tls_key_file.absolute())},
                "watched_directory": watched,
            }
        }
    }
    if settings.tls_client_ca_file is not None:
        found["authorities"] = {
            "validation_context": {
                "trusted_ca": {"filename": str(settings.tls_client_ca_file.absolute())},
                "watched_directory": watched,
            }
        }
    secret = f"{_TYPES}extensions.transport_sockets.tls.v3.Secret"
    return {
        _file_of(name): {"resources": [{"@type": secret, "name": name, **content}]} for name, content in found.items()
    }


def _secret(name: str, folder: Path) -> dict[str, Any]:
    return {"name": name, "sds_config": {"path_config_source": {"path": str(folder / _file_of(name))}}}


def _file_of(name: str) -> str:
    return f"{name}.json"


def _address(host: str, port: int) -> dict[str, Any]:
    address: dict[str, Any] = {"address": host, "port_value": port}
    if host == "::":
        address["ipv4_compat"] = True
    return {"socket_address": address}


def _max_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else soft
