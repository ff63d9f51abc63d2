"""A Prometheus of our own: started with the committed configuration on a free loopback port."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.deploy_tools import DEPLOY, needed
from tests.e2e.server_process import free_port, wait_until

CONFIG = DEPLOY / "prometheus"
DATASOURCE = DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
Json = dict[str, Any]


class RealPrometheus:
    """Scrapes ``target`` (host:port); use as a context manager."""

    def __init__(self, folder: Path, target: str) -> None:
        binary = needed("prometheus", "prometheus")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.target = target
        shutil.copytree(CONFIG, folder / "config")
        config = folder / "config" / "prometheus.yml"
        committed = config.read_text()
        assert committed.count('["quire:8000"]') == 1
        config.write_text(committed.replace("quire:8000", target))
        self.scrape_interval_s = int(yaml.safe_load(committed)["global"]["scrape_interval"][:-1])
        self._client = httpx.Client(base_url=self.url, timeout=20)
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> RealPrometheus:
        def ready() -> bool:
            assert self._process.poll() is None, Path(self._log.name).read_text()
            try:
                return self._client.get("/-/ready").status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(ready, 20, "Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def ask(self, path: str, **parameters: str) -> Any:
        """``data`` of the API's answer. Fails with Prometheus's own words."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        content = answer.json()
        assert content["status"] == "success", f"{parameters}: {content.get('error')}"
        return content["data"]

    def now(self, query: str) -> list[Json]:
        """The series of an instant query, each with ``metric`` and ``value``."""
        found: list[Json] = self.ask("query", query=query)["result"]
        return found

    def over(self, query: str, seconds: float) -> list[Json]:
        """The series of a range query over the last ``seconds``."""
        end = time.time()
        found: list[Json] = self.ask(
            "query_range", query=query, start=str(end - seconds), end=str(end), step="5"
        )["result"]
        return found

    def number(self, query: str) -> float:
        """The one value of a query; 0 where there is no series yet."""
        found = self.now(query)
        assert len(found) <= 1, f"{query} has {len(found)} series"
        return float(found[0]["value"][1]) if found else 0.0


class Variables:
    """Puts the values of a dashboard's variables into its queries, as Grafana does with All."""

    def __init__(self, prometheus: RealPrometheus) -> None:
        self._prometheus = prometheus
        datasource = yaml.safe_load(DATASOURCE.read_text())["datasources"][0]
        interval_s = int(datasource["jsonData"]["timeInterval"][:-1])
        self.values = {"__rate_interval": f"{4 * interval_s}s"}

    def take(self, variables: list[Json]) -> None:
        """Asks for the values of each, in order: the query of one may name those before it.

        Fails where one has none.
        """
        for variable in variables:
            if variable["type"] != "query":
                continue
            query = self.fill(variable["query"]["query"])
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            assert found is not None, query
            names = self._prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]})
            assert names, f"{query} has no value"
            self.values[variable["name"]] = f"({'|'.join(re.escape(name) for name in names)})"

    def fill(self, query: str) -> str:
        for name, value in self.values.items():
            query = query.replace(f"${name}", value.replace("\\", "\\\\"))
        return query
