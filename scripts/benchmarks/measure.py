"""Single measurements: curl, wrk, what the kernel says of a process, and facts of the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import BenchError, find

from p2pregistry.demo import counters

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MB = 1_000_000
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_PERCENTILE = re.compile(r"^\s+99%\s+([\d.]+)(us|ms|s|m)\s*$", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec:\s+([\d.]+)\s*$", re.MULTILINE)
_TROUBLE = re.compile(r"^\s*(Non-2xx.*|Socket errors.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Download:
    """One body by curl: seconds in all and to the first byte."""

    seconds: float
    first_byte: float
    size: int

    @property
    def rate(self) -> float:
        """MB/s (10^6)."""
        return self.size / MB / self.seconds


def curl(url: str, size: int) -> Download:
    """GET ``url`` to /dev/null. Raises BenchError unless it is a 200 of ``size`` bytes."""
    form = "%{http_code} %{size_download} %{time_total} %{time_starttransfer}"
    done = subprocess.run(["curl", "-s", "-o", "/dev/null", "-w", form, url], capture_output=True, text=True)
    status, got, total, first = done.stdout.split()
    if done.returncode or status != "200" or int(got) != size:
        raise BenchError(f"curl {url}: exit {done.returncode}, status {status}, {got} of {size} bytes")
    return Download(float(total), float(first), size)


def curl_to_disk(url: str, size: int, digest: str, path: Path) -> Download:
    """What a careful shell user does: curl to a file and through sha256sum. Raises BenchError if that is wrong."""
    start = time.perf_counter()
    script = 'set -o pipefail; curl -sf "$1" | tee "$2" | sha256sum'
    done = subprocess.run(["bash", "-c", script, "-", url, str(path)], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode or done.stdout.split()[:1] != [digest.removeprefix("sha256:")] or path.stat().st_size != size:
        raise BenchError(f"curl {url} | tee | sha256sum: exit {done.returncode}, {done.stdout.strip()}")
    return Download(seconds, 0.0, size)


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk: requests a second and the 99th percentile in milliseconds."""

    rate: float
    p99: float


def wrk(url: str, seconds: int) -> Load:
    """``wrk -t1 -c16`` on ``url``. Raises BenchError if any answer was not a 2xx."""
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--latency", "-H", f"Accept: {MANIFEST_TYPE}", url]
    done = subprocess.run(command, capture_output=True, text=True)
    rate, p99 = _RATE.search(done.stdout), _PERCENTILE.search(done.stdout)
    trouble = _TROUBLE.search(done.stdout)
    if done.returncode or rate is None or p99 is None or trouble is not None:
        raise BenchError(f"wrk {url}: {trouble[1] if trouble else done.stdout + done.stderr}")
    return Load(float(rate[1]), float(p99[1]) * _UNITS[p99[2]])


def get(url: str) -> bytes:
    """The body of a manifest or a page of metrics."""
    request = urllib.request.Request(url, headers={"Accept": f"{MANIFEST_TYPE}, */*"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return bytes(answer.read())


def fetched(metrics_url: str) -> dict[str, int]:
    """Bytes that a node has fetched, by kind of source."""
    page = get(f"{metrics_url}/metrics").decode()
    return counters(page, "p2pregistry_fetched_bytes_total", "source")


def peak_rss(pid: int) -> float | None:
    """The most memory the process ever had resident (VmHWM), MB (10^6); None where the kernel does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 / MB if found else None


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    except OSError:
        pass  # not Linux: the general name will do
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MB,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "nginx": _version("nginx", "-v"),
        "docker_registry": _version("docker-registry", "--version"),
        "curl": _version("curl", "--version"),
        "wrk": _version("wrk", "-v"),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(program: str, flag: str) -> str | None:
    path = find(program)
    if path is None:
        return None
    done = subprocess.run([path, flag], capture_output=True, text=True)
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
    return found[0] if found else "unknown"


def say(text: str) -> None:
    """Progress, for people, apart from the figures."""
    print(text, file=sys.stderr, flush=True)
