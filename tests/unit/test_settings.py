"""Settings: where they come from, what is refused and how, and that files and documents are in step with the code."""

import contextlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.settings import NodeSettings
from p2pregistry.errors import SettingsError
from p2pregistry.settings import Settings, describe, dump, load, pairs, parse_duration, parse_size, template
from tracker.settings import TrackerSettings, read_secret

PROGRAMS = [NodeSettings, TrackerSettings]
ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def refused(
    path: Path | None = None, env: dict[str, str] | None = None, overrides: dict[str, object] | None = None
) -> str:
    with pytest.raises(SettingsError) as caught:
        load(NodeSettings, path, env, overrides)
    return caught.value.message


def test_nothing_given_is_the_defaults() -> None:
    settings = load(NodeSettings)
    assert settings == NodeSettings()
    assert settings.pull.host == ("127.0.0.1", "::1")
    assert (settings.pull.port, settings.peer.port, settings.libp2p.port, settings.metrics.port) == (
        5000,
        5001,
        5002,
        5003,
    )
    assert settings.cache.max_bytes is None
    assert settings.tags.max_stale is None


def test_later_wins_file_environment_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "[pull]\nport = 1\n[peer]\nport = 1\n[metrics]\nport = 1\n")
    env = {"P2PREGISTRY_PEER__PORT": "2", "P2PREGISTRY_METRICS__PORT": "2"}
    settings = load(NodeSettings, path, env, {"metrics.port": "3", "libp2p.port": None})
    assert (settings.pull.port, settings.peer.port, settings.metrics.port, settings.libp2p.port) == (1, 2, 3, 5002)


def test_text_is_read_by_the_type_of_the_setting() -> None:
    env = {
        "P2PREGISTRY_CACHE__MAX_BYTES": "20GiB",
        "P2PREGISTRY_TAGS__MAX_AGE": "5m",
        "P2PREGISTRY_PULL__HOST": "127.0.0.1, ::1",
        "P2PREGISTRY_TRACKER__NAMES": "",
        "HOME": "/root",
    }
    settings = load(NodeSettings, env=env)
    assert settings.cache.max_bytes == 20 * 1024**3
    assert settings.tags.max_age == 300
    assert settings.pull.host == ("127.0.0.1", "::1")
    assert settings.tracker.names is None
    assert load(TrackerSettings, env={"P2PREGISTRY_AUTH__ANONYMOUS_PULL": "false"}).auth.anonymous_pull is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cache]\nmax_byte = 1", "$.cache.max_byte: no such setting, did you mean cache.max_bytes?"),
        ("[nonsense]\nx = 1", "$.nonsense.x: no such setting"),
        ("cache = 1", "$.cache: settings stand in sections"),
        ('[pull]\nport = "5000"', "$.pull.port: expected int, got str"),
        ("[pull]\nport = 70000", "$.pull.port: expected int <= 65535"),
        ("[pull]\nhost = []", "$.pull.host: at least one address"),
        ("[pull]\nhost = [1]", "$.pull.host: expected str, got int"),
        ('[cache]\nmax_bytes = "20 zots"', "$.cache.max_bytes: a size is"),
        ("[cache]\nmax_bytes = true", "$.cache.max_bytes: expected int, got bool"),
        ("[tags]\nmax_age = -1", "$.tags.max_age: expected float >= 0.0"),
        ('[tags]\nmax_age = "soon"', "$.tags.max_age: a duration is"),
        ('[node]\nlog_format = "xml"', "$.node.log_format: invalid enum value 'xml'"),
        ('[tracker]\nurl = "example.com"', "$.tracker.url: must begin with http"),
        ('[tracker]\nroot_key = "k4.secret.x"', "$.tracker.root_key: must be a PASERK"),
        ('[ipfs]\nuse = "on"', "$.ipfs.gateways: with ipfs.use at least one"),
        ('[ipfs]\ngateways = ["https://a:b@c"]', "$.ipfs.gateways: one is not a URL"),
        ('[ipfs]\ngateways = ["ftp://a"]', "$.ipfs.gateways: one is not a URL"),
        ('[ipfs]\nkubo = "127.0.0.1:5001"', "$.ipfs.kubo: one is not a URL"),
        ('[ipfs]\ngateways = ["https://a", "https://a/"]', "$.ipfs.gateways: each place once"),
        ('[ipfs]\nkubo_secret_file = "x"', "$.ipfs.kubo_secret_file: without ipfs.kubo"),
        ("[cache", "not a TOML file"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(write(tmp_path, text))


def test_an_unknown_variable_or_flag_is_refused_and_where_it_was_given_is_told() -> None:
    assert "environment variable P2PREGISTRY_PULL__PROT" in refused(env={"P2PREGISTRY_PULL__PROT": "1"})
    assert "(command line)" in refused(overrides={"pull.port": "x"})
    with pytest.raises(SettingsError, match=r"section\.key=value"):
        pairs(["pull.port"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "none.toml")


def test_a_tracker_listens_beyond_loopback_only_if_told_that_it_is_insecure() -> None:
    for overrides in (
        {"registry.host": "0.0.0.0"},
        {"peer.host": "::", "peer.plain": "true"},
        {"registry.host": "localhost,registry.example"},
    ):
        with pytest.raises(SettingsError, match="insecure"):
            load(TrackerSettings, overrides=overrides)
        assert load(TrackerSettings, overrides={**overrides, "tracker.insecure": "true"}).tracker.insecure
    load(TrackerSettings, overrides={"registry.host": "127.0.0.1,::1,localhost"})
    load(TrackerSettings, overrides={"peer.host": "::"})  # TLS, then


def test_a_node_speaks_plain_http_only_if_told_to() -> None:
    for path in ("tracker.url", "peer.advertise"):
        with pytest.raises(SettingsError, match=r"peer\.plain"):
            load(NodeSettings, overrides={path: "http://a:1"})
        load(NodeSettings, overrides={path: "http://a:1", "peer.plain": "true"})
        load(NodeSettings, overrides={path: "https://a:1"})


def test_settings_that_belong_together() -> None:
    for overrides in ({"auth.username": "x"}, {"database.dsn": "a", "database.dsn_file": "b"}):
        with pytest.raises(SettingsError):
            load(TrackerSettings, overrides=overrides)


def test_a_secret_is_never_in_a_message(tmp_path: Path) -> None:
    path = write(tmp_path, '[database]\ndsn = ["hunter2"]')
    with pytest.raises(SettingsError) as caught:
        load(TrackerSettings, path)
    assert "hunter2" not in caught.value.message
    (tmp_path / "secret").write_text("hunter2\n")
    assert read_secret(str(tmp_path / "secret"), "auth.password_file") == "hunter2"
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        read_secret(str(tmp_path / "secret"), "auth.password_file")


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1048576", 1048576), ("1KiB", 1024), ("1.5 MB", 1500000), ("2G", 2 * 1024**3)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("250ms", 0.25), ("1.5", 1.5), ("5m", 300), ("1d", 86400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(max_size=8)), max_size=4))
def test_any_overrides_load_or_are_refused(overrides: dict[str, object]) -> None:
    named = {f"cache.{key}": value for key, value in overrides.items()} | {"cache.max_bytes": overrides.get("")}
    with contextlib.suppress(SettingsError):
        assert isinstance(load(NodeSettings, overrides=named), NodeSettings)


@given(st.text(), st.lists(st.text(), max_size=3), st.booleans(), st.integers(-(2**63), 2**63 - 1))
def test_what_dump_writes_toml_reads_back(text: str, texts: list[str], flag: bool, number: int) -> None:
    values = {"text": text, "texts": texts, "flag": flag, "number": number}
    assert tomllib.loads(dump({"section": {**values, "unset": None}})) == {"section": values}


@pytest.mark.parametrize("cls", PROGRAMS)
def test_every_setting_has_one_sentence_of_help_and_loads_from_its_variable(cls: type[Settings]) -> None:
    rows = describe(cls)
    assert len({row.path for row in rows}) == len(rows)
    for row in rows:
        assert row.setting.help.endswith(".")
        assert "\n" not in row.setting.help
        assert row.default is not None or row.setting.example is not None


@pytest.mark.parametrize("cls", PROGRAMS)
def test_the_annotated_file_uncommented_is_a_valid_configuration(cls: type[Settings], tmp_path: Path) -> None:
    text = template(cls, ["a head"])
    assert load(cls, write(tmp_path, text)) == cls()
    uncommented = "\n".join(line[1:] if line[:1] == "#" and line[1:2] != " " else line for line in text.splitlines())
    document = tomllib.loads(uncommented)
    assert {f"{section}.{key}" for section, table in document.items() for key in table} == {
        row.path for row in describe(cls)
    }
    document.get("database", {}).pop("dsn", None)  # excludes dsn_file
    document.get("database", {}).pop("direct_dsn", None)  # excludes direct_dsn_file
    document.get("oidc", {}).pop("jwks_url", None)  # excludes jwks_file
    document.get("keys", {}).pop("wrapping_key", None)  # excludes wrapping_key_file
    document.get("kubo", {}).pop("secret", None)  # excludes secret_file
    for name in ("upload_token", "pinning_token"):
        document.get("ipfs", {}).pop(name, None)  # excludes the file
    load(cls, write(tmp_path, dump(document)))


def test_config_files_and_documents_are_in_step_with_the_code() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "settings-docs", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
