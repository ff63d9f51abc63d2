"""HttpServer: the API process while it runs. Start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from server import __version__
from server.api.app import create_app
from server.api.http import serve as http_server
from server.api.sampling import generation_defaults
from server.api.state import ApiState, GenerationDefaults, HttpLimits, ModelCard
from server.client.ipc import IpcEngineClient, shutting_down
from server.client.process import EngineProcess
from server.client.supervisor import EngineState, Health, Supervisor
from server.config.server_config import ServerConfig
from server.errors import StartupError
from server.host_budget import HostBudget
from server.ipc.engine_info import EngineInfo, engine_gauges, memory_reading
from server.ipc.gauges import GaugeBlock
from server.memory.accounting.malloc import Trimmer, fix_mmap_threshold
from server.memory.accounting.process import process_resident
from server.memory.accounting.reading import MemoryReading
from server.memory.report.tree import MemoryReport, MemorySources
from server.metrics.gauges import GaugeSources, ServedModel
from server.metrics.prometheus import PrometheusMetrics
from server.metrics.stats import RequestLog, RequestMetricsFanOut
from server.startup.descriptors import ConnectionLimits
from server.startup.listener import address
from server.startup.model_info import ModelInfo, engine_settings
from server.startup.report import ReportInput, print_report, startup_report, version_report
from server.text.chat_template import ChatTemplate
from server.text.tokenizer import Tokenizer

log = logging.getLogger("quire.server")

EXIT_DONE = 0
EXIT_ENGINE_GAVE_UP = 1
EXIT_AT_ONCE = 130
_CLOSE_S = 5  # for connections to close after the last answer
_DRAIN_CHECK_S = 0.02
_SAME_SIGNAL_S = 0.1  # a launcher passes on what its whole process group was sent: one wish, twice


class HttpServer:
    """Everything of the API process, joined. ``run`` is called once.

    Raises:
        StartupError: the tokenizer cannot be used.
    """

    def __init__(
        self,
        config: ServerConfig,
        model: ModelInfo,
        connections: ConnectionLimits,
        listener: socket.socket,
        gauges: GaugeBlock,
        spawn: Callable[[], EngineProcess],
        started: float,
    ) -> None:
        self._config, self._model, self._gauges = config, model, gauges
        self._connections = connections
        self._started = started
        self._facts: EngineInfo | None = None
        self._socket = listener
        self._budget = HostBudget(model.placement.api_memory, Trimmer().freed)
        self._metrics = PrometheusMetrics(self._gauge_sources())
        self._memory = MemoryReport(model.plan, self._memory_sources())
        self.client = IpcEngineClient(self._metrics, self._budget)
        self.supervisor = Supervisor(
            spawn,
            engine_settings(config, model),
            self.client,
            self._metrics,
            heartbeat=lambda: engine_gauges(gauges.read())["heartbeat"],
            on_ready=self._on_ready,
        )
        self.health = Health(self.supervisor)
        self._defaults = self._generation_defaults()
        self._state = self._api_state()
        self._http = http_server(
            create_app(self._state),
            self._state.limits,
            self._state.metrics,
            drain_timeout_s=_CLOSE_S,
        )
        self._stop = asyncio.Event()
        self._signalled = 0.0

    async def run(self, first: EngineProcess) -> int:
        """Serves until a signal or the engine's end; returns the exit code. ``first`` has been told
        its settings."""
        fix_mmap_threshold()
        self._handle_signals()
        engine = asyncio.create_task(self.supervisor.run(first, told=True))
        http = asyncio.create_task(self._http.serve(sockets=[self._socket]))
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({engine, http, stop}, return_when=asyncio.FIRST_COMPLETED)
            if engine.done():
                engine.result()  # a start-up error is raised here
                log.error("the engine failed too often; stopping")
                return EXIT_ENGINE_GAVE_UP
            if http.done():
                http.result()
                raise StartupError("the HTTP server could not start; the log above says why")
            await self._drain()
            return EXIT_DONE
        finally:
            stop.cancel()
            self.supervisor.stop()
            self._http.should_exit = True
            await asyncio.gather(engine, http, return_exceptions=True)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._stop.is_set() and now - self._signalled < _SAME_SIGNAL_S:
            return
        self._signalled = now
        if self._stop.is_set():
            log.warning("second signal: stopping at once")
            os._exit(EXIT_AT_ONCE)  # the engine dies with this process
        log.info("%s: draining %d open requests", signal.Signals(number).name, self.client.num_open)
        self.health.draining = True
        self.client.drain()
        self._stop.set()

    async def _drain(self) -> None:
        """Waits until every open request has been answered, for at most --drain-timeout."""
        deadline = time.monotonic() + self._config.drain_timeout
        while self.client.num_open and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_CHECK_S)
        if self.client.num_open:
            log.warning("--drain-timeout: ending %d open requests", self.client.num_open)
            self.client.detach(shutting_down())
        self._http.should_exit = True

    def _on_ready(self, facts: EngineInfo) -> None:
        first, self._facts = self._facts is None, facts
        if not first:
            log.info("the engine is ready again after %.1f s", facts.ready_seconds)
            return
        report = startup_report(
            ReportInput(
                config=self._config,
                model=self._model,
                engine=facts,
                reading=self._reading(),
                defaults=asdict(self._defaults),
                address=address(self._socket),
                no_chat=self._no_chat(),
                seconds=time.monotonic() - self._started,
                connections=self._connections,
            )
        )
        print_report(report)

    def _no_chat(self) -> str:
        template = self._state.chat_template
        if template is None:
            return "no chat template"
        return f"{template.file} cannot be used" if template.is_broken else ""

    def _live_gauges(self) -> Mapping[str, int]:
        """The block of an engine that is there: what a dead one wrote last is true no more."""
        return self._gauges.read() if self.supervisor.state is EngineState.READY else {}

    def _reading(self) -> MemoryReading | None:
        return memory_reading(self._live_gauges())

    def _requests_running(self) -> int:
        return engine_gauges(self._live_gauges()).get("requests_running", 0)

    def _weights(self) -> Mapping[str, int]:
        return {} if self._facts is None else self._facts.weights

    def _gauge_sources(self) -> GaugeSources:
        held = self._model.plan.config.model
        held_format = self._model.placement.backend.parts.held_format
        return GaugeSources(
            engine=lambda: engine_gauges(self._live_gauges()),
            engine_up=lambda: self.supervisor.serves,
            memory=self._reading,
            planned=lambda: self._model.plan.kinds,
            weights=lambda: [
                (component, held_format(self._model.spec, component, held), nbytes)
                for component, nbytes in self._weights().items()
            ],
            host_bytes=process_resident,
            api_budget=self._budget.reading,
            device=self._model.placement.backend.device,  # as /memory calls it
            model=self._served_model(),
        )

    def _served_model(self) -> ServedModel:
        plan = self._model.plan
        return ServedModel(
            name=self._config.model_name,
            dtype=plan.config.model.format,
            quantization=plan.config.model.quantization or "none",
            version=__version__,
            block_size=plan.config.cache.block_size,
            num_blocks=plan.kv.num_blocks,
            cache_dtype=plan.config.cache.format,
        )

    def _memory_sources(self) -> MemorySources:
        return MemorySources(
            reading=self._reading,
            weights=self._weights,
            requests_running=self._requests_running,
            host_bytes=process_resident,
            api_budget=self._budget.reading,
        )

    def _card(self) -> ModelCard:
        plan = self._model.plan
        return ModelCard(
            name=self._config.model_name,
            created=int(time.time()),
            vocab_size=self._model.spec.vocab_size,
            max_model_len=plan.max_model_len,
            kv_capacity_tokens=plan.capacity_tokens,
            max_logprobs=plan.config.scheduler.max_logprobs,
            system_fingerprint=self._model.fingerprint,
        )

    def _generation_defaults(self) -> GenerationDefaults:
        if self._config.generation_config == "none":
            return GenerationDefaults()
        try:
            return generation_defaults(self._model.generation_config, self._card())
        except ValueError as error:
            raise StartupError(str(error)) from None

    def _api_state(self) -> ApiState:
        model, config = self._model, self._config
        tokenizer = Tokenizer.from_folder(
            model.folder, vocab_size=model.spec.vocab_size, config=model.config
        )
        return ApiState(
            engine=self.client,
            tokenizer=tokenizer,
            chat_template=ChatTemplate.from_folder(model.folder, tokenizer.named_tokens),
            model=self._card(),
            defaults=self._defaults,
            limits=HttpLimits(
                max_body_bytes=config.max_body_size,
                max_connections=self._connections.ordinary,
                probe_connections=self._connections.probes,
                stream_keep_alive_s=config.stream_keep_alive,
                max_prompt_ids=model.plan.config.scheduler.max_queued_tokens,
            ),
            budget=self._budget,
            metrics=RequestMetricsFanOut((self._metrics, RequestLog())),
            memory=self._memory.tree,
            memory_text=self._memory.text,
            render_metrics=self._metrics.render,
            health=self.health,
            version=version_report(config, model),
        )
