"""The engine as its clients see it: every event is checked against the oracle."""

from __future__ import annotations

from server.engine.events import ChoiceOutput, EngineFrame, PromptOutput
from tests.engine.engine_story import own_logprobs
from tests.engine.fake_model import model_logprob
from tests.invariants.engine_oracle import Choice, Promise, Visits, fingerprint


class Clients:
    """All clients together: what they were promised, and what has come."""

    def __init__(self, block_size: int, visits: Visits) -> None:
        self.block_size = block_size
        self.visits = visits
        self.now = 0.0
        self.promises: dict[str, Promise] = {}
        self.expected_accepts: list[tuple[str, ...]] = []
        self.expected_refusals: list[tuple[tuple[str, ...], str]] = []
        self.num_submitted = 0
        self.num_refused = 0
        self.num_ended = 0

    def live(self) -> list[Promise]:
        return [promise for promise in self.promises.values() if promise.is_live]

    def note_submission(self, count: int, refused: int = 0) -> None:
        self.num_submitted += count
        self.num_refused += refused

    def observe(self, frame: EngineFrame) -> None:
        assert [a.request_ids for a in frame.accepted] == self.expected_accepts, "accepted once"
        refused = [(r.request_ids, r.code) for r in frame.refused]
        assert refused == self.expected_refusals, "refused once, whole, with the right code"
        for refusal in frame.refused:
            has_time = refusal.retry_after is not None
            assert has_time == (refusal.code == "QUEUE_FULL"), "a full queue says when to retry"
        self.expected_accepts, self.expected_refusals = [], []
        for prompt in frame.prompts:
            self._observe_prompt(prompt)
        for output in frame.choices:
            self._observe_choice(output)

    def _observe_prompt(self, output: PromptOutput) -> None:
        promise = self.promises[output.request_id]
        if output.logprobs is None:
            assert not promise.prompt_announced, "a prompt is announced once"
            promise.prompt_announced = True
            cached, size = output.num_cached_tokens, self.block_size
            assert cached % size == 0
            assert cached < len(promise.request.prompt_token_ids), "cached is less than the prompt"
            return
        assert output.first_position == len(promise.prompt_logprobs) + 1, (
            "prompt log-probabilities come in order, none twice"
        )
        promise.prompt_logprobs += own_logprobs(output.logprobs)

    def _observe_choice(self, output: ChoiceOutput) -> None:
        promise = self.promises[output.request_id]
        choice = promise.choices[output.choice]
        assert not choice.outcome, "after its one outcome a choice is silent"
        choice.delivered += output.token_ids
        assert choice.delivered == choice.solo.token_ids[: len(choice.delivered)], (
            "a choice gets the tokens of its solo run"
        )
        self._observe_logprobs(promise, choice, output)
        if output.finish_reason is not None:
            choice.outcome = output.finish_reason.value
            self.num_ended += 1
            self.visits.states[f"finished_{choice.outcome}"] += 1
            self._check_outcome(promise, choice, output)

    def _observe_logprobs(self, promise: Promise, choice: Choice, output: ChoiceOutput) -> None:
        if not output.token_ids or promise.request.sampling.logprobs is None:
            assert output.logprobs is None, "log-probabilities come only where asked for"
            return
        assert output.logprobs is not None
        before = tuple(choice.delivered[: -len(output.token_ids)])
        prefix = fingerprint((*promise.request.prompt_token_ids, *before))
        token = output.token_ids[0]
        assert own_logprobs(output.logprobs) == [(token, model_logprob(prefix, token))]

    def _check_outcome(self, promise: Promise, choice: Choice, output: ChoiceOutput) -> None:
        if choice.outcome == "abort":
            assert promise.was_aborted, "only what was aborted ends so"
        elif choice.outcome == "error":
            self._check_error(promise, choice, output)
        else:
            assert choice.outcome == choice.solo.reason, "a choice ends as its solo run does"
            assert choice.delivered == choice.solo.token_ids, "a choice gets all its tokens"
            assert output.stop_token_id == choice.solo.stop_token_id
            if promise.request.sampling.prompt_logprobs is not None and output.choice == 0:
                expected = promise.expected_prompt_logprobs()
                assert promise.prompt_logprobs == expected, "every prompt token is scored once"

    def _check_error(self, promise: Promise, choice: Choice, output: ChoiceOutput) -> None:
        code = output.error_code
        self.visits.events[f"error {code}"] += 1
        if code == "NON_FINITE":
            assert choice.solo.reason == "error", "only the row that was not finite ends"
        elif code == "QUEUE_TIMEOUT":
            assert not promise.was_scheduled, "what was scheduled does not expire"
            assert self.now > promise.deadline, "nothing expires early"
        else:
            assert code == "INTERNAL"
            assert promise.num_failed_steps >= 2, "a failed step is tried once more"
